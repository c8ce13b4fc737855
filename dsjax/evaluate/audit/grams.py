"""Stretches of n words of many texts, found again in a stream of words.

A stretch (n-gram) has the 64-bit hash

    h = sum_j R[w_{i+j}] P^j  mod 2^64,  then mixed,

R a random number a word, P odd. With C_i = sum_{k<i} R[w_k] P^k it is (C_{i+n} - C_i) P^{-i}: one
running sum serves every position and every n. The hashes of the texts lie in a sorted array behind
a table of bits, which turns away all but a sixteenth of what comes past. A hit is confirmed on the
words themselves, so that a collision is no hit: hashes decide the speed, never the result.

For a text of W words the index holds 4 W bytes of words and at most 28 W of stretches; the words
themselves, some 120 bytes each, are the vocabulary's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_ODD = 0x9E3779B97F4A7C15
_MIX = np.uint64(0xBF58476D1CE4E5B9)
SPARSE = 16
"""Bits of the table for each hash."""


class Hashes:
    """The hash of every stretch of a stream of word numbers."""

    def __init__(self, words: int, bits: int = 64) -> None:
        """Draw a number for each of the words; `bits` below 64 make hashes collide (for tests)."""
        draw = np.random.default_rng(20)
        self._random = draw.integers(0, 2**64, words + 1, np.uint64)
        self._shift = np.uint64(64 - bits)
        self._powers, self._inverses = _powers(1024)

    def of(self, ids: np.ndarray, sizes: Sequence[int]) -> list[np.ndarray]:
        """Return the hashes of the stretches of each size: ids [W] -> [W - n + 1] uint64."""
        if len(ids) >= len(self._powers):
            self._powers, self._inverses = _powers(2 * len(ids))
        sums = np.zeros(len(ids) + 1, np.uint64)
        np.cumsum(self._random[ids] * self._powers[: len(ids)], out=sums[1:])
        made = []
        for n in sizes:
            count = max(len(ids) - n + 1, 0)
            found = (sums[n : n + count] - sums[:count]) * self._inverses[:count]
            found ^= found >> np.uint64(32)
            found *= _MIX
            found ^= found >> np.uint64(29)
            made.append(found >> self._shift)
        return made


def _powers(count: int) -> tuple[np.ndarray, np.ndarray]:
    """P^k and P^-k for k < count, mod 2^64."""
    found = []
    for base in (_ODD, pow(_ODD, -1, 2**64)):
        row = np.full(count, base, np.uint64)
        row[0] = 1
        found.append(np.cumprod(row, dtype=np.uint64))
    return found[0], found[1]


def known(ids: np.ndarray, n: int) -> np.ndarray:
    """Starts of the stretches of n words that have no 0: ids [W] -> [<= W - n + 1]."""
    if len(ids) < n:
        return np.zeros(0, np.int64)
    zeros = np.concatenate([[0], np.cumsum(ids == 0)])
    return np.flatnonzero(zeros[n:] == zeros[:-n])


@dataclass(frozen=True)
class Sieve:
    """A table of bits that says of most hashes that they are not among some."""

    bits: np.ndarray  # [2^k / 8] uint8
    mask: np.uint64

    @staticmethod
    def of(hashes: np.ndarray) -> Sieve:
        """Make the table."""
        size = 1 << max(10, int(SPARSE * max(len(hashes), 1) - 1).bit_length())
        bits, mask = np.zeros(size // 8, np.uint8), np.uint64(size - 1)
        low = hashes & mask
        np.bitwise_or.at(bits, low >> np.uint64(3), _bit(low))
        return Sieve(bits, mask)

    def passes(self, hashes: np.ndarray) -> np.ndarray:
        """Tell of each hash whether it may be among them -> bool."""
        low = hashes & self.mask
        return (self.bits[low >> np.uint64(3)] & _bit(low)) != 0


def _bit(low: np.ndarray) -> np.ndarray:
    return np.left_shift(np.uint8(1), (low & np.uint64(7)).astype(np.uint8))


@dataclass(frozen=True)
class Index:
    """The different stretches of n words of some texts, sorted by hash.

    The texts lie one behind the other in `text`, a 0 between them, so that no stretch spans two.
    """

    n: int
    text: np.ndarray  # [W] uint32
    hashes: np.ndarray  # [G] uint64, rising
    at: np.ndarray  # [G] one place of each in the text
    places: np.ndarray  # every place, by stretch
    starts: np.ndarray  # [G + 1] of the stretches' places
    sieve: Sieve

    def __len__(self) -> int:
        return len(self.hashes)

    def find(self, ids: np.ndarray, hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the places [F] of known stretches in ids [W], and their numbers [F] here."""
        where = known(ids, self.n)
        where = where[self.sieve.passes(hashes[where])]
        wanted = hashes[where]
        number = np.searchsorted(self.hashes, wanted)
        found_at, found_number = [], []
        while len(where):  # once, but for hashes that several stretches share
            is_there = number < len(self.hashes)
            is_there &= self.hashes[np.minimum(number, len(self.hashes) - 1)] == wanted
            where, number, wanted = where[is_there], number[is_there], wanted[is_there]
            is_same = self._are_equal(ids, where, number)
            found_at.append(where[is_same])
            found_number.append(number[is_same])
            where, number, wanted = where[~is_same], number[~is_same] + 1, wanted[~is_same]
        if not found_at:
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        at, numbers = np.concatenate(found_at), np.concatenate(found_number)
        order = np.argsort(at, kind="stable")
        return at[order], numbers[order]

    def _are_equal(self, ids: np.ndarray, where: np.ndarray, number: np.ndarray) -> np.ndarray:
        """Compare stretches word by word."""
        steps = np.arange(self.n)
        here, there = ids[where[:, None] + steps], self.text[self.at[number][:, None] + steps]
        return (here == there).all(axis=1)


def index(text: np.ndarray, n: int, hashes: Hashes) -> Index:
    """Index the stretches of n words of texts that lie in `text`, a 0 between them."""
    places = known(text, n)
    (found,) = hashes.of(text, [n])
    order = np.argsort(found[places], kind="stable")
    places = places[order].astype(np.int32 if len(text) < 2**31 else np.int64)
    sorted_hashes = found[places]
    is_new = np.ones(len(places), bool)
    is_same_hash = sorted_hashes[1:] == sorted_hashes[:-1]
    is_new[1:] = ~is_same_hash
    if _differ(text, places, n, is_same_hash):
        places, is_new = _apart(text, places, sorted_hashes, n)
    firsts = np.flatnonzero(is_new)
    return Index(n, text, sorted_hashes[firsts], places[firsts], places,
                 np.append(firsts, len(places)), Sieve.of(sorted_hashes[firsts]))


def _differ(text: np.ndarray, places: np.ndarray, n: int, is_same_hash: np.ndarray) -> bool:
    """Tell whether neighbors of equal hash have other words."""
    pairs = np.flatnonzero(is_same_hash)
    return any((text[places[pairs] + j] != text[places[pairs + 1] + j]).any() for j in range(n))


def _apart(text: np.ndarray, places: np.ndarray, hashes: np.ndarray,
           n: int) -> tuple[np.ndarray, np.ndarray]:
    """Sort places by hash, then by words -> (places, is the first of its words)."""
    columns = [text[places + j] for j in reversed(range(n))]
    order = np.lexsort([*columns, hashes])
    places, hashes = places[order], hashes[order]
    is_new = np.ones(len(places), bool)
    is_new[1:] = hashes[1:] != hashes[:-1]
    for j in range(n):
        is_new[1:] |= text[places[1:] + j] != text[places[:-1] + j]
    return places, is_new
