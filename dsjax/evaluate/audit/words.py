"""Words as overlaps are counted in, and the places in a text that they stand at.

A text is made plain: Unicode's NFKC form in lower case, apostrophes and invisible marks taken out,
every other punctuation mark or symbol a blank; words are what blanks part. GPT-3 (arXiv 2005.14165
appendix C) ignores case, punctuation and whitespace alike, and so does lm-evaluation-harness
(lm_eval/decontamination/janitor.py), which joins the words on both sides of a dash where this parts
them. Scripts that set no blanks between words (Chinese, Japanese, Thai) make a word of a clause.

Words are numbered by a `Vocabulary` of the audited tasks; every other word is 0. Equal numbers are
equal words, so that nothing depends on a hash.
"""

from __future__ import annotations

import functools
import re
import string
import unicodedata
from collections.abc import Iterable, Sequence
from itertools import repeat

import numpy as np

_APOSTROPHES = "'\u2018\u2019\u02bc\u201b\u2032"
_BLANK = bytes(32 if chr(code) in string.punctuation or code < 33 or code == 127 else code
               for code in range(256))
_LOWER = bytes(ord(chr(code).lower()) if code < 128 else code for code in range(256))
_PLAIN = _BLANK.translate(_LOWER)  # byte -> blank, or its lower case
_MARKED = bytes(code if code == ord("'") else _PLAIN[code] for code in range(256))
_SPACES = np.array([code for code in range(128) if chr(code).isspace()], np.uint8)
_TOKEN = re.compile(r"\S+")
_ASCII = frozenset(map(chr, range(128)))


def words(text: str) -> list[bytes]:
    """The words of a text in UTF-8, in order."""
    if not text.isascii():
        text = _without_marks(text)
        if not unicodedata.is_normalized("NFKC", text):
            text = _without_marks(unicodedata.normalize("NFKC", text))
        text = text.lower()
    data = text.encode("utf-8", "replace")
    return data.translate(_PLAIN, b"'").split()


def _without_marks(text: str) -> str:
    """A text without the marks and symbols above ASCII."""
    for odd in set(text).difference(_ASCII):
        if (instead := _instead(odd)) != odd:
            text = text.replace(odd, instead)
    return text


@functools.cache
def _instead(letter: str) -> str:
    """Return nothing, a blank or the character itself: what one above ASCII becomes."""
    kind = unicodedata.category(letter)
    if kind == "Cf" or letter in _APOSTROPHES:
        return ""
    return " " if kind[0] in "PSZ" or letter.isspace() else letter


class Vocabulary:
    """Numbers of words, from 1 in the order of their coming; 0 stands for every other word."""

    def __init__(self) -> None:
        """Begin without words."""
        self._number: dict[bytes, int] = {}

    def __len__(self) -> int:
        return len(self._number)

    def learn(self, text: str) -> np.ndarray:
        """Number the words of a text, new ones, too -> [words] uint32."""
        numbers = self._number
        return np.array([numbers.setdefault(w, len(numbers) + 1) for w in words(text)], np.uint32)

    def read(self, text: str) -> np.ndarray:
        """Number the words of a text -> [words] uint32."""
        found = words(text)
        return np.fromiter(map(self._number.get, found, repeat(0)), np.uint32, len(found))


def places(text: str, spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return [start, stop) in characters of stretches of words (first, last) of a text.

    They begin and end at blanks, so that they have the marks that cling to their words.
    """
    starts, stops, counts = _tokens(text)
    ends = np.cumsum(counts)  # words up to and with a token
    begin = np.searchsorted(ends, [first for first, _ in spans], side="right")
    end = np.searchsorted(ends, [last for _, last in spans], side="right")
    return list(zip(starts[begin].tolist(), stops[end].tolist(), strict=True))


def _tokens(text: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Starts, stops and numbers of words of the stretches of a text that blanks part.

    Making a text plain never works across blanks, so that their words are those of the text.
    """
    if text.isascii():
        return _ascii_tokens(text.encode())
    found = [(m.start(), m.end(), len(words(m[0]))) for m in _TOKEN.finditer(text)]
    starts, stops, counts = np.array(found, np.int64).reshape(-1, 3).T
    return starts, stops, counts


def _ascii_tokens(text: bytes) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The same, of ASCII and without a loop: runs of letters with one that is no apostrophe."""
    is_space = np.isin(np.frombuffer(text, np.uint8), _SPACES)
    marked = np.frombuffer(text.translate(_MARKED), np.uint8)
    starts, stops = _runs(marked != 32)
    letters = np.concatenate([[0], np.cumsum((marked != 32) & (marked != ord("'")))])
    ends = np.zeros(len(text) + 1, np.int64)  # words that begin before a place
    ends[starts + 1] = letters[stops] > letters[starts]
    np.cumsum(ends, out=ends)
    starts, stops = _runs(~is_space)
    return starts, stops, ends[stops] - ends[starts]


def _runs(is_in: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Starts and stops of the runs of True."""
    edges = np.flatnonzero(np.diff(is_in.astype(np.int8), prepend=0, append=0))
    return edges[::2], edges[1::2]


def plain(found: Iterable[bytes]) -> str:
    """Words as one text, for people."""
    return " ".join(word.decode("utf-8", "replace") for word in found)
