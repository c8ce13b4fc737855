"""One pass over a corpus: every stretch of words and every near copy that tasks have in it.

Kept in memory: the index of the tasks, one piece of the corpus, and 32 bytes of each hit; a stretch
that has been found in more documents than `common` allows adds none.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dsjax.evaluate.audit import grams, near
from dsjax.evaluate.audit.corpus import Document, Piece
from dsjax.evaluate.audit.grams import Hashes
from dsjax.evaluate.audit.items import Task
from dsjax.evaluate.audit.words import Vocabulary, places

SHOWN = 2000
"""Characters of a passage that are kept to be shown."""
PASSAGES = 3


@dataclass(frozen=True)
class Settings:
    """Meaning of an overlap."""

    words: int = 13
    """Length of the stretches that count when they are found word by word."""
    common: int = 10
    """Documents above which a stretch is taken for a common phrase."""
    similarity: float | None = 0.75
    """Share of a text's words that a near copy has in their order; None looks for none."""
    bits: int = 64
    """Bits of the hashes; fewer are for tests."""


@dataclass(frozen=True)
class Passage:
    """A stretch of a document."""

    document: Document
    start: int
    """In characters of the document."""
    stop: int
    text: str
    """At most `SHOWN` characters of it."""


class Looked:
    """The items of all tasks, laid out to be looked for."""

    def __init__(self, tasks: Sequence[Task], settings: Settings) -> None:
        """Number the words of all items, and index their stretches."""
        self.tasks, self.settings = list(tasks), settings
        self.vocabulary = Vocabulary()
        rows: list[np.ndarray] = []
        starts, texts, owners = [0], [], []
        between = np.zeros(1, np.uint32)
        for item in (item for task in tasks for item in task.items):
            at = starts[-1]
            for field in item.fields:
                rows.append(self.vocabulary.learn(field))
                parts = list(near.cut(at, at + len(rows[-1])))
                texts += parts
                owners += [len(starts) - 1] * len(parts)
                at += len(rows[-1])
            rows.append(between)
            starts.append(at + 1)
        self.ids = np.concatenate(rows) if rows else between
        self.starts = np.array(starts)
        """Beginning of each item in `ids`, and the end of the last."""
        self.owners = np.array(owners, np.int64)
        """The item of each text that near copies are looked for of."""
        self.hashes = Hashes(len(self.vocabulary), settings.bits)
        self.index = grams.index(self.ids, settings.words, self.hashes)
        self.finder = None
        if settings.similarity is not None:
            (own,) = self.hashes.of(self.ids, [near.SHINGLE])
            self.finder = near.Finder(self.ids, texts, own, settings.similarity)

    @property
    def overlap(self) -> int:
        """Words that pieces of the corpus must have in common."""
        room = 3 * self.finder.longest if self.finder else 0
        return max(self.settings.words - 1, room)

    @property
    def bytes(self) -> int:
        """Memory of the index, without the words and the sketches."""
        arrays = [self.ids, self.index.hashes, self.index.at, self.index.places, self.index.starts,
                  self.index.sieve.bits]
        return sum(array.nbytes for array in arrays)


Row = tuple[int, int, int]


class Found:
    """Everything that a pass has found so far."""

    def __init__(self, looked: Looked) -> None:
        """Begin with nothing."""
        self.looked = looked
        self.documents = np.zeros(len(looked.index), np.int32)
        """Documents that each stretch was found in."""
        self._last = np.full(len(looked.index), -1, np.int64)
        self._hits: list[np.ndarray] = []  # [hits, 4] document, stretch, start, stop
        self.passages: dict[int, list[tuple[np.ndarray, Passage]]] = {}
        """The longest passages of each item, each with its stretches."""
        self.copies: dict[int, tuple[float, int, Passage]] = {}
        """The best near copy of each item: similarity, text, passage."""
        self.copy_rows: set[Row] = set()
        """(document, start, stop) of every near copy."""
        self.documents_hit: dict[int, Document] = {}
        """Documents with a hit or a copy, by number."""
        self.characters = self.words = 0
        self.number = 0
        """Documents."""

    @property
    def hits(self) -> np.ndarray:
        """[hits, 4] (document, stretch, start, stop) of stretches that are not common."""
        made = np.concatenate([*self._hits, np.zeros((0, 4), np.int64)])
        return made[~self.is_common[made[:, 1]]]

    @property
    def is_common(self) -> np.ndarray:
        """Mark of each stretch that more documents have than are allowed."""
        return self.documents > self.looked.settings.common

    def add(self, piece: Piece) -> None:
        """Look through a piece."""
        looked, n = self.looked, self.looked.settings.words
        ids = looked.vocabulary.read(piece.text)
        sizes = [n, near.SHINGLE] if looked.finder else [n]
        hashes = looked.hashes.of(ids, sizes)
        self.characters += len(piece.text)
        self.words += len(ids) - piece.old_words
        self.number = piece.document.number + 1
        at, number = looked.index.find(ids, hashes[0])
        is_new = at + n > piece.old_words
        if is_new.any():
            self._add_hits(piece, at[is_new], number[is_new])
        if looked.finder:
            for copy in looked.finder.find(ids, hashes[1]):
                self._add_copy(piece, copy)

    def _add_hits(self, piece: Piece, at: np.ndarray, number: np.ndarray) -> None:
        fresh = np.unique(number)
        fresh = fresh[self._last[fresh] != piece.document.number]
        self._last[fresh] = piece.document.number
        self.documents[fresh] += 1
        is_kept = ~self.is_common[number]
        at, number = at[is_kept], number[is_kept]
        if not len(at):
            return
        n = self.looked.settings.words
        spans = np.array(places(piece.text, [(a, a + n - 1) for a in at.tolist()]))
        row = np.full((len(at), 4), piece.document.number)
        row[:, 1], row[:, 2:] = number, spans + piece.start
        self._hits.append(row)
        self.documents_hit[piece.document.number] = piece.document
        for run in np.split(np.arange(len(at)), np.flatnonzero(np.diff(at) != 1) + 1):
            self._keep_passage(piece, spans[run[0], 0], spans[run[-1], 1], number[run])

    def _keep_passage(self, piece: Piece, start: int, stop: int, run: np.ndarray) -> None:
        """Keep a run of stretches for the items that have many of them."""
        index = self.looked.index
        places = [index.places[index.starts[g] : index.starts[g + 1]] for g in run.tolist()]
        own = np.searchsorted(self.looked.starts, np.concatenate(places), side="right") - 1
        counts = [len(p) for p in places]
        stretch = np.repeat(run, counts)
        passage = None
        for item in np.unique(own).tolist():
            mine = np.unique(stretch[own == item])
            kept = self.passages.setdefault(item, [])
            if len(kept) < PASSAGES or len(mine) > len(kept[-1][0]):
                passage = passage or _passage(piece, int(start), int(stop))
                kept.append((mine, passage))
                kept.sort(key=lambda one: -len(one[0]))
                del kept[PASSAGES:]

    def _add_copy(self, piece: Piece, copy: near.Copy) -> None:
        ((start, stop),) = places(piece.text, [(copy.first, copy.last)])
        self.copy_rows.add((piece.document.number, piece.start + start, piece.start + stop))
        self.documents_hit[piece.document.number] = piece.document
        item = int(self.looked.owners[copy.text])
        if item not in self.copies or copy.similarity > self.copies[item][0]:
            self.copies[item] = (copy.similarity, copy.text, _passage(piece, start, stop))


def _passage(piece: Piece, start: int, stop: int) -> Passage:
    text = piece.text[start : min(stop, start + SHOWN)]
    return Passage(piece.document, piece.start + start, piece.start + stop, text)


def scan(looked: Looked, pieces: Iterable[Piece]) -> Found:
    """Look through the pieces of a corpus."""
    found = Found(looked)
    for piece in pieces:
        found.add(piece)
    return found


def settings_as_json(settings: Settings) -> dict[str, Any]:
    """The settings as a report has them."""
    made = dataclasses.asdict(settings)
    del made["bits"]
    return made
