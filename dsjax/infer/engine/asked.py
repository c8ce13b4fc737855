"""What the host asks of every rank, and the same as the arrays that programs read.

Lists are by rank; None is a rank that has nothing to do: its arrays name no slot, and the spare
page.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np

from dsjax.infer.engine import steps
from dsjax.infer.engine.place import Place
from dsjax.infer.sample import Sampling, sampling_params
from dsjax.params import key_of


class Text(NamedTuple):
    """A row's text as it enters a slot."""

    slot: int
    tokens: Sequence[int]
    prompt_len: int
    sampling: Sampling
    sample: int = 0


class Piece(NamedTuple):
    """Positions start..stop-1 of a slot's text, and the slot's pages."""

    slot: int
    pages: Sequence[int]
    start: int
    stop: int


@dataclass(frozen=True)
class Asked:
    """Makes arrays for ranks of so many slots and pages; a table has `width` pages."""

    place: Place
    slots: int
    pages: int
    width: int
    page_size: int

    def texts(self, texts: Sequence[Text | None]) -> steps.Row:
        """A text of each rank."""
        nobody = Text(self.slots, (0,), 1, Sampling())
        return self.place.put([self._text(text or nobody) for text in texts])

    def _text(self, text: Text) -> steps.Row:
        tokens: Any = np.zeros(self.width * self.page_size, np.int32)
        tokens[: len(text.tokens)] = text.tokens
        return steps.Row(
            _number(text.slot), tokens, _number(len(text.tokens) - 1), _number(text.prompt_len),
            jax.random.fold_in(key_of(text.sampling.seed), text.sample),
            sampling_params([text.sampling], "any"))

    def pairs(self, pairs: Sequence[tuple[int, int] | None]) -> steps.Pair:
        """A page of each rank and where it is copied to."""
        spare = self.pages, self.pages
        return self.place.put([steps.Pair(*map(_number, pair or spare)) for pair in pairs])

    def pieces(self, pieces: Sequence[Piece | None]) -> steps.Piece:
        """A piece of a text of each rank."""
        nothing = Piece(self.slots, (), 0, 0)
        return self.place.put([
            steps.Piece(_number(p.slot), self._tables([p.pages], 1), _number(p.start),
                        _number(p.stop)) for p in (piece or nothing for piece in pieces)])

    def rows(self, slots: Sequence[Sequence[int]], tables: Sequence[Sequence[Sequence[int]]],
             wants_top: bool, rows: int) -> steps.Rows:
        """Rows of a program that decodes, filled up with rows that are no slot's."""
        return self.place.put([
            steps.Rows(self._slots(mine, rows), self._tables(pages, rows),
                       _number(wants_top, np.bool_))
            for mine, pages in zip(slots, tables, strict=True)])

    def _slots(self, slots: Sequence[int], rows: int) -> Any:
        out = np.full(rows, self.slots, np.int32)
        out[: len(slots)] = slots
        return out

    def _tables(self, tables: Sequence[Sequence[int]], rows: int) -> Any:
        """Tables of a program's rows, filled up with the spare page."""
        out = np.full((rows, self.width), self.pages, np.int32)
        for row, pages in enumerate(tables):
            out[row, : len(pages)] = pages[: self.width]
        return out


def _number(value: int, dtype: Any = np.int32) -> Any:
    """A number of the host; programs read arrays."""
    return dtype(value)
