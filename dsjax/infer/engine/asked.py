"""Requests of the host to every rank, and the same as the arrays that programs read.

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


def part_of(piece: Piece | None, first: int, length: int) -> Piece | None:
    """At most `length` positions of a piece, from its position `first` on; None where it ends."""
    if piece is None or piece.start + first >= piece.stop:
        return None
    start = piece.start + first
    return piece._replace(start=start, stop=min(start + length, piece.stop))


@dataclass(frozen=True)
class Asked:
    """Makes arrays for ranks of so many slots and pages; a table has `width` pages."""

    place: Place
    slots: int
    pages: int
    width: int
    page_size: int
    depth: int
    is_deterministic: bool

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

    def tables(self, tables: Sequence[Sequence[Sequence[int]]]) -> Any:
        """Tables of each rank's rows, as many as there are slots."""
        return self.place.put([self._tables(of_rank, self.slots) for of_rank in tables])

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
            self._rows(mine, pages, rows, wants_top)
            for mine, pages in zip(slots, tables, strict=True)])

    def _rows(self, slots: Sequence[int], tables: Sequence[Sequence[int]], rows: int,
              wants_top: bool) -> steps.Rows:
        held, reading = self._tables(tables, rows), None
        if self.is_deterministic:
            nowhere: Any = np.full(rows, -1, np.int32)
            reading = steps.Reading(nowhere, _number(0), _number(0), _number(False, np.bool_), held)
        return steps.Rows(self._slots(slots, rows), held, _number(wants_top, np.bool_), reading)

    def reading(self, pieces: Sequence[Piece | None], is_main: bool, rows: int) -> steps.Rows:
        """Pieces as rows of a program that decodes: the main model's turn, or its modules'."""
        return self.place.put([
            self._reading(piece, is_main, rows) if piece else self._rows((), (), rows, False)
            for piece in pieces])

    def _reading(self, piece: Piece, is_main: bool, rows: int) -> steps.Rows:
        each, first = (self.depth + 1, 0) if is_main else (2 * self.depth, 2 * self.depth)
        count = -(-(piece.stop - piece.start) // each)
        at: Any = np.full(rows, -1, np.int32)
        at[:count] = piece.start + first + each * np.arange(count)
        mine, nobodys = self._tables([piece.pages] * count, rows), self._tables((), rows)
        main, modules = (mine, nobodys) if is_main else (nobodys, mine)
        reading = steps.Reading(at, _number(piece.start), _number(piece.stop),
                                _number(is_main, np.bool_), modules)
        return steps.Rows(self._slots([piece.slot] * count, rows), main, _number(False, np.bool_),
                          reading)

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
