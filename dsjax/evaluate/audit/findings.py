"""Findings of a pass by item and by task, and the stretches of the corpus that they are made of.

An item is dirty by GPT-3's rule where one stretch of it that is not a common phrase stands in the
corpus (arXiv 2005.14165 appendix C), and dirty, too, where a near copy of one of its fields does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from dsjax.evaluate.audit.items import Item
from dsjax.evaluate.audit.scan import Found, Passage
from dsjax.evaluate.audit.words import places

Spans = list[tuple[int, int]]


@dataclass(frozen=True)
class Match:
    """A stretch of an item beside a passage of the corpus."""

    text: str
    """The stretch of the item."""
    passage: Passage


@dataclass(frozen=True)
class Dirt:
    """An item that stands in the corpus."""

    item: Item
    share: float
    """Share of its words that lie in stretches of the corpus."""
    documents: int
    """Documents that have the most frequent of its stretches; 0 where there is none."""
    similarity: float
    """Share of the words of its nearest copy, 0 where there is none."""
    exact: Match | None
    near: Match | None

    @property
    def worst(self) -> float:
        """The larger of share and similarity."""
        return max(self.share, self.similarity)

    def as_json(self, task: str) -> dict[str, Any]:
        """The item as dirty.jsonl has it."""
        return {"task": task, "id": self.item.id, "number": self.item.number,
                "exact": {"share": round(self.share, 4), "documents": self.documents,
                          "match": _as_json(self.exact)} if self.documents else None,
                "near": {"similarity": round(self.similarity, 4),
                         "match": _as_json(self.near)} if self.similarity else None}


def _as_json(match: Match | None) -> dict[str, Any] | None:
    if match is None:
        return None
    passage = match.passage
    return {"text": match.text, "document": passage.document.name, "start": passage.start,
            "stop": passage.stop, "passage": passage.text}


@dataclass(frozen=True)
class TaskDirt:
    """Dirty items of a task."""

    name: str
    items: int
    short: int
    """Items of fewer words than a stretch has: they can only be found as near copies."""
    common: int
    """Items whose only stretches in the corpus are common phrases, which do not count."""
    dirty: tuple[Dirt, ...]
    """The worst first."""
    ids: tuple[str, ...]
    """Names of all items, in their order; one may stand twice."""

    @property
    def exact(self) -> int:
        """Items with a stretch in the corpus."""
        return sum(one.documents > 0 for one in self.dirty)

    @property
    def near(self) -> int:
        """Items with a near copy in the corpus."""
        return sum(one.similarity > 0 for one in self.dirty)

    @property
    def share(self) -> float:
        """Share of the items that are dirty."""
        return len(self.dirty) / self.items

    def as_json(self) -> dict[str, Any]:
        """The task as report.json has it."""
        return {"items": self.items, "short": self.short, "exact": self.exact, "near": self.near,
                "dirty": len(self.dirty), "share": round(self.share, 6),
                "common_only": self.common,
                "worst": round(max((one.worst for one in self.dirty), default=0), 4)}


def of(found: Found) -> list[TaskDirt]:
    """Sum up a pass by task."""
    looked = found.looked
    counted = np.flatnonzero((found.documents > 0) & ~found.is_common)
    shares = _shares(found, counted)
    documents = _documents(found, counted)
    has_common = _documents(found, np.flatnonzero(found.is_common)) > 0
    sizes = np.diff(looked.starts) - 1
    made, number = [], 0
    for task in looked.tasks:
        own = range(number, number + len(task.items))
        number += len(task.items)
        dirty = [_dirt(found, i, item, float(shares[i]), int(documents[i]))
                 for i, item in zip(own, task.items, strict=True)
                 if documents[i] or i in found.copies]
        common = sum(bool(has_common[i]) and not documents[i] for i in own)
        short = int((sizes[own.start : own.stop] < looked.settings.words).sum())
        dirty.sort(key=lambda one: (-one.worst, -one.documents))
        made.append(TaskDirt(task.name, len(task.items), short, common, tuple(dirty),
                             tuple(item.id for item in task.items)))
    return made


def _places(found: Found, stretches: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Every place in the items of some stretches, and which stretch it is."""
    index = found.looked.index
    counts = index.starts[stretches + 1] - index.starts[stretches]
    which = np.repeat(stretches, counts)
    begin = np.repeat(index.starts[stretches] - np.cumsum(counts) + counts, counts)
    return index.places[begin + np.arange(len(which))], which


def _shares(found: Found, stretches: np.ndarray) -> np.ndarray:
    """Share of each item's words that lie in some of the stretches -> [items]."""
    looked = found.looked
    places, _ = _places(found, stretches)
    edges = np.zeros(len(looked.ids) + 1, np.int64)
    np.add.at(edges, places, 1)
    np.add.at(edges, places + looked.settings.words, -1)
    covered = np.concatenate([[0], np.cumsum(np.cumsum(edges[:-1]) > 0)])
    inside = covered[looked.starts[1:] - 1] - covered[looked.starts[:-1]]
    return inside / np.maximum(np.diff(looked.starts) - 1, 1)


def _documents(found: Found, stretches: np.ndarray) -> np.ndarray:
    """Documents of the most frequent of an item's stretches -> [items]."""
    places, which = _places(found, stretches)
    made = np.zeros(len(found.looked.starts) - 1, np.int64)
    items = np.searchsorted(found.looked.starts, places, side="right") - 1
    np.maximum.at(made, items, found.documents[which])
    return made


def _dirt(found: Found, number: int, item: Item, share: float, documents: int) -> Dirt:
    similarity, exact, near = 0.0, None, None
    looked = found.looked
    start = int(looked.starts[number])
    if documents and number in found.passages:
        exact = _exact(found, number, item)
    if number in found.copies:
        similarity, text, passage = found.copies[number]
        a, b = looked.finder.spans[text] if looked.finder else (start, start + 1)
        near = Match(_stretch(item, a - start, b - 1 - start), passage)
    return Dirt(item, share, documents, similarity, exact, near)


def _exact(found: Found, number: int, item: Item) -> Match | None:
    """The passage with most of an item's stretches that are not common, beside them."""
    counted = [(own[~found.is_common[own]], passage) for own, passage in found.passages[number]]
    own, passage = max(counted, key=lambda one: len(one[0]))
    if not len(own):
        return None
    start, stop = found.looked.starts[number : number + 2]
    places, _ = _places(found, own)
    places = np.sort(places[(places >= start) & (places < stop)])
    runs = np.split(places, np.flatnonzero(np.diff(places) != 1) + 1)
    run = max(runs, key=len)
    last = int(run[-1]) + found.looked.settings.words - 1
    return Match(_stretch(item, int(run[0] - start), int(last - start)), passage)


def _stretch(item: Item, first: int, last: int) -> str:
    """The words `first` to `last` of an item as they stand in it."""
    ((start, stop),) = places(item.text, [(first, last)])
    return item.text[start:stop]


def spans(found: Found) -> Mapping[tuple[str, int], Spans]:
    """The stretches of each document that are hits, (start, stop) in characters, in order.

    Documents are named by path and place.
    """
    rows = [(document, start, stop) for document, _, start, stop in found.hits.tolist()]
    made: dict[tuple[str, int], Spans] = {}
    for number, start, stop in sorted({*rows, *found.copy_rows}):
        document = found.documents_hit[number]
        own = made.setdefault((document.path, document.place), [])
        if own and start <= own[-1][1]:
            own[-1] = own[-1][0], max(stop, own[-1][1])
        else:
            own.append((start, stop))
    return made
