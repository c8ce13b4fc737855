"""Kinds of lines in a play: who speaks, what happens on the stage, verse and prose."""

from __future__ import annotations

import re

import numpy as np

from dsjax.data import sources
from dsjax.data.tokenizers.tokenizer import Tokenizer

KINDS = ("speakers", "stage directions", "verse", "prose")
ROWS = 6
"""Rows of each kind."""
PLAYS = 8


def kind_of(line: str) -> str | None:
    """The kind of a line by its form; None for blank lines and headings.

    A speaker stands alone in capitals with a full stop; a direction is bracketed or begins as one;
    verse is a line that begins with a capital and is short; lines from 60 characters on are prose.
    """
    text = line.strip()
    if not text:
        return None
    if text.isupper() and text.endswith("."):
        return "speakers"
    if text.startswith(("[", "(", "_")) or re.match(r"(Enter|Exit|Exeunt|Re-enter)\b", text):
        return "stage directions"
    if text.isupper() or re.match(r"(ACT|SCENE)\b", text):
        return None
    return "prose" if len(text) >= 60 else "verse"


def rows(words: Tokenizer, length: int) -> tuple[np.ndarray, list[str]]:
    """Rows of ids [N * ROWS, length] of one kind each, and the kind of each row."""
    documents = list(sources.documents([sources.EMBEDDED]))
    lines: dict[str, list[str]] = {kind: [] for kind in KINDS}
    for line in (line for text in documents[-PLAYS:] for line in text.splitlines()):
        if (kind := kind_of(line)) is not None:
            lines[kind].append(line.strip() + "\n")
    made, names = [], []
    for kind in KINDS:
        ids = words.encode("".join(lines[kind])[: ROWS * length * 6])[: ROWS * length]
        made += [ids[at * length : (at + 1) * length] for at in range(ROWS)]
        names += [kind] * ROWS
    return np.array(made, np.int32), names
