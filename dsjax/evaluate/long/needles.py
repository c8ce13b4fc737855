"""Needles in haystacks: a short fact hidden in text, and the question that only it answers.

A needle is a sentence that tells a code; the question is the same sentence up to the code. The code
is two signs that prose does not have, so that nothing else in the haystack answers; with the blank
before it each is a token of its own. Length is all that the model reads and writes, in tokens;
depth is the share of the haystack before the needle (V3 report sec. 4.3 and figure 8, whose needle
is prose and whose answer a judge reads).
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dsjax.data.tokenizers.tokenizer import Tokenizer
from dsjax.errors import UserError
from dsjax.evaluate import requests
from dsjax.evaluate.likelihood import Text

SIGNS = "#$%+<=", ">\\^`|~"
"""Signs of a code, one of each group: a guess is right once in 36 times."""


@dataclass(frozen=True)
class Needle:
    """A fact: the secret code."""

    value: str
    """Two signs, a blank before each."""

    @property
    def question(self) -> str:
        """Words after which the value follows."""
        return "\nThe secret code is"

    @property
    def statement(self) -> str:
        """The sentence that is hidden."""
        return f"{self.question}{self.value} .\n"


def needle(draw: random.Random) -> Needle:
    """Draw a needle."""
    return Needle("".join(f" {draw.choice(of)}" for of in SIGNS))


@dataclass(frozen=True)
class Item:
    """A haystack with its needle, as a model is asked."""

    length: int
    """Tokens of the whole, the answer included."""
    depth: float
    """Share of the haystack that stands before the needle, from 0 to 1."""
    needle: Needle
    text: Text
    """The answer is its continuation."""


@dataclass(frozen=True)
class Grid:
    """Lengths and depths at which needles are hidden, and how often."""

    lengths: tuple[int, ...]
    depths: tuple[float, ...]
    each: int
    """Items of a length and a depth."""
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what hides nothing."""
        outside = [depth for depth in self.depths if not 0 <= depth <= 1]
        if not (self.lengths and self.depths) or self.each < 1 or outside:
            raise UserError(f"a grid of lengths {self.lengths}, depths {self.depths} and "
                            f"{self.each} items a cell hides nothing; depths are shares from 0 to "
                            "1, and each cell has at least one item")


def items(grid: Grid, hay: Sequence[int], words: Tokenizer) -> Iterator[Item]:
    """Hide needles at every length and depth of a grid, by lengths, then by depths.

    hay: ids of text, of which each item is a stretch that begins at a place drawn by the grid's
    seed. Items of one length and number share a stretch, a needle and a question over all depths.
    """
    for length in grid.lengths:
        for number in range(grid.each):
            draw = random.Random(f"{grid.seed} {length} {number}")
            told, at = needle(draw), draw.random()
            for depth in grid.depths:
                yield Item(length, depth, told, hidden(told, length, depth, at, hay, words))


def hidden(told: Needle, length: int, depth: float, at: float, hay: Sequence[int],
           words: Tokenizer) -> Text:
    """Hide one needle in a text of `length` tokens; `at` is the share of the hay it begins at.

    Raises UserError where the hay is too short, or the length has no room for a sentence and its
    question.
    """
    statement, question = (words.encode(part) for part in (told.statement, told.question))
    answer = words.encode(told.value)
    room = length - 1 - len(statement) - len(question) - len(answer)
    if room < 1:
        raise UserError(f"a text of {length} tokens has no room for a needle of {len(statement)} "
                        f"and its question of {len(question) + len(answer)}; use at least "
                        f"{length + 1 - room}")
    if len(hay) < room:
        raise UserError(f"the haystack has {len(hay):,} tokens and a text of {length:,} needs "
                        f"{room:,}; give more text, or ask for shorter ones")
    start = int(at * (len(hay) - room + 1))
    before = round(depth * room)
    stretch = list(hay[start : start + room])
    context = [requests.prefix(words), *stretch[:before], *statement, *stretch[before:], *question]
    return Text(tuple(context), tuple(answer))
