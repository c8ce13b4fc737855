"""Copies of texts with words changed, found in a stream of words by MinHash.

Texts and windows of the corpus are compared as sets of stretches of five words. A window is looked
at where it may have enough of them: if a copy keeps a share q of a text's s stretches, a window of
that length has at least q s known ones. Such windows are sketched (datasketch's MinHash) and asked
of a table of all texts' sketches (MinHashLSH), whose bands of two find a Jaccard similarity of 0.3
in 19 windows of 20, and 0.5 in all. A candidate is then held against the passage by the longest
common subsequence of words:

    similarity = LCS(text, passage) / words of the text,

which case, punctuation and words put in between leave alone, and which every word that is dropped
or exchanged lowers by its share. The windows go from long to short, and what is found is not looked
at again.

Texts are the fields of items, of at least `LEAST` words; longer ones than `MOST` are cut.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType

import numpy as np

from dsjax.errors import UserError
from dsjax.evaluate.audit.grams import Sieve, known

SHINGLE = 5
LEAST, MOST = 12, 256
KEPT = 0.2
"""Share of its stretches that a copy keeps: one word of ten changed leaves 0.59 of them."""
BANDS, ROWS = 32, 2


@dataclass(frozen=True)
class Copy:
    """A passage of a stream of words that is much like a text."""

    text: int
    similarity: float
    first: int
    """Its first word in the stream."""
    last: int
    """Its last word."""


def cut(start: int, stop: int) -> Iterator[tuple[int, int]]:
    """Yield the stretches [start, stop) of a field that are looked for: its whole, or its parts."""
    parts = max(1, -(-(stop - start) // MOST))
    edges = [start + (stop - start) * k // parts for k in range(parts + 1)]
    yield from ((a, b) for a, b in itertools.pairwise(edges) if b - a >= LEAST)


class Finder:
    """Finds copies of texts."""

    def __init__(self, ids: np.ndarray, spans: Sequence[tuple[int, int]], hashes: np.ndarray,
                 similarity: float) -> None:
        """Sketch the texts.

        ids: [W] words; spans: [start, stop) of the texts in them; hashes: of their stretches.
        """
        self._library = _datasketch()
        self._similarity = similarity
        self.spans = list(spans)
        self._ids = ids
        self._empty = self._library.MinHash(BANDS * ROWS, hashfunc=int)
        self._table = self._library.MinHashLSH(num_perm=BANDS * ROWS, params=(BANDS, ROWS))
        lengths = []
        with self._table.insertion_session() as session:
            for number, (start, stop) in enumerate(self.spans):
                own = np.unique(hashes[start : stop - SHINGLE + 1])
                lengths.append(len(own))
                session.insert(number, self._sketch(own), check_duplication=False)
        inside = [np.arange(a, b - SHINGLE + 1) for a, b in self.spans]
        self._hashes = np.unique(hashes[np.concatenate([*inside, np.zeros(0, np.int64)])])
        self._sieve = Sieve.of(self._hashes)
        self._windows = _windows(lengths)
        self._masks: dict[int, dict[int, int]] = {}

    def _sketch(self, hashes: np.ndarray) -> object:
        made = self._empty.copy()
        made.update_batch((hashes & np.uint64(2**32 - 1)).tolist())
        return made

    @property
    def longest(self) -> int:
        """Words of the longest text."""
        return max((stop - start for start, stop in self.spans), default=0)

    def find(self, ids: np.ndarray, hashes: np.ndarray) -> list[Copy]:
        """Return the copies in a stream: ids [W], hashes of its stretches [W - 4]."""
        where = known(ids, SHINGLE)
        where = where[self._sieve.passes(hashes[where])]
        number = np.minimum(np.searchsorted(self._hashes, hashes[where]), len(self._hashes) - 1)
        where = where[self._hashes[number] == hashes[where]] if len(self._hashes) else where[:0]
        if len(where) < 2:
            return []
        is_known = np.zeros(len(hashes), bool)
        is_known[where] = True
        is_found = np.zeros(len(ids), bool)
        found: list[Copy] = []
        for length, least in self._windows:
            for start in _dense(is_known, length, least):
                stop = min(start + length, len(hashes))
                if is_found[start:stop].mean() <= 0.5:
                    found += self._in_window(ids, hashes, start, stop, is_found)
        return found

    def _in_window(self, ids: np.ndarray, hashes: np.ndarray, start: int, stop: int,
                   is_found: np.ndarray) -> list[Copy]:
        """Copies in a window of stretches and around it; marks the words that they take."""
        found = []
        for text in self._table.query(self._sketch(np.unique(hashes[start:stop]))):
            a, b = self.spans[text]
            slack = b - a
            first = max(start - slack, 0)
            passage = ids[first : stop + SHINGLE + slack]
            common, begin, end = longest_common(self._mask(text), b - a, passage.tolist())
            if common >= self._similarity * (b - a):
                one = Copy(text, common / (b - a), first + begin, first + end)
                is_found[one.first : one.last + 1] = True
                found.append(one)
        return found

    def _mask(self, text: int) -> dict[int, int]:
        """Places of each word in a text, as bits; a few thousand texts are kept."""
        if text not in self._masks:
            if len(self._masks) > 4096:
                self._masks.clear()
            self._masks[text] = masks(self._ids[slice(*self.spans[text])].tolist())
        return self._masks[text]


def _datasketch() -> ModuleType:
    try:
        import datasketch
    except ImportError:
        raise UserError("near copies are found by datasketch, which is not installed; install "
                        "dsjax[audit], or give --no-near") from None
    return datasketch


def _windows(lengths: Sequence[int]) -> list[tuple[int, int]]:
    """Lengths of windows, from long to short, each with the known stretches that it needs."""
    made = []
    high = max(lengths, default=0)
    while high > 1:
        low = max(int(high / 1.5), 2)
        own = [n for n in lengths if low <= n <= high]
        if own:
            made.append((max(own), max(2, round(KEPT * min(own)))))
        high = low - 1
    return made


def _dense(is_known: np.ndarray, length: int, least: int) -> Iterator[int]:
    """Starts of windows that hold at least so many known stretches, a quarter window apart."""
    sums = np.concatenate([[0], np.cumsum(is_known)])
    stops = np.minimum(np.arange(len(is_known)) + length, len(is_known))
    starts = np.flatnonzero(sums[stops] - sums[:-1] >= least)
    step, ready = max(length // 4, 1), -1
    at = 0
    while at < len(starts):
        yield int(starts[at])
        ready = int(starts[at]) + step
        at = int(np.searchsorted(starts, ready))


def masks(words: Sequence[int]) -> dict[int, int]:
    """Bit j of a word's mask is set where word j of a text is that word."""
    made: dict[int, int] = {}
    for j, word in enumerate(words):
        made[word] = made.get(word, 0) | 1 << j
    return made


def longest_common(text: dict[int, int], length: int,
                   passage: Sequence[int]) -> tuple[int, int, int]:
    """Return the length of the longest common subsequence, and a stretch of the passage with it.

    text: masks of its words (`masks`). The stretch [first, last] is the one that ends first, as
    short as can be. Bit-parallel, after Hyyro (2004): a 0 of `row` is a word more.
    """
    full = (1 << length) - 1

    def rows(order: range) -> Iterator[tuple[int, int]]:
        row = full
        for at in order:
            if match := row & text.get(passage[at], 0):
                row = ((row + match) | (row - match)) & full
                yield at, length - row.bit_count()

    best, last = 0, -1
    for at, common in rows(range(len(passage))):
        if common > best:
            best, last = common, at
    if not best:
        return 0, 0, -1
    # From the end back, the words before `first` add nothing. The text is read backwards, too.
    text = {word: int(f"{mask:0{length}b}"[::-1], 2) for word, mask in text.items()}
    first = next(at for at, common in rows(range(last, -1, -1)) if common == best)
    return best, first, last
