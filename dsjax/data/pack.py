"""Documents to rows of T+1 tokens, and fill-in-the-middle (V3 sections 4.1 and 4.2).

A row has tokens, segments (1, 2, ... by document within the row; 0 is padding) and weights (1
where a token counts as a target). Position i is the input for target i+1, so T+1 tokens hold T
targets and weights[0] is 0; the next row of a stream starts with the last token of this one, so
that every token is a target exactly once. A stream is `end d0 end d1 end ...`; two ways to cut it:

- `concat`, V3's: one segment; attention crosses documents.
- `segments`: the same rows; a document and its end token are one segment and attention stays
  inside. The first token of a document then has nothing to be predicted from and weighs 0.

`whole` packs short documents uncut, with padding, each with its own target weights (V3 section 5.1:
SFT rows with sample masking).

FIM is prefix-suffix-middle at document level, `begin prefix hole suffix end middle`, followed by
the end token when documents are joined. The cuts are at token level: they fall between ids, so the
text needs no second tokenization, and a prompt cut inside a word is outside of what is trained.

Axis: T row length.
"""

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from dsjax.data.tokenizers.tokenizer import Tokenizer
from dsjax.errors import UserError

Row = dict[str, np.ndarray]


class TokenStream(Protocol):
    """A stream that rows are cut from: an array of ids, or `dsjax.data.shards.Shards`."""

    def __len__(self) -> int: ...

    def __getitem__(self, where: slice) -> np.ndarray: ...


class Rows(Protocol):
    """A numbered set of rows: tokens and segments int32 [T+1], weights float32 [T+1]."""

    @property
    def length(self) -> int:
        """T, the number of targets a row can hold."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, number: int) -> Row: ...


@dataclass(frozen=True)
class StreamRows:
    """Rows cut on demand from one long stream; the last is padded."""

    stream: TokenStream
    length: int
    end_id: int
    is_crossing: bool

    def __len__(self) -> int:
        return -(-(len(self.stream) - 1) // self.length)

    def __getitem__(self, number: int) -> Row:
        start = int(number) * self.length
        ids = np.asarray(self.stream[start : start + self.length + 1], np.int32)
        segments = np.ones(len(ids), np.int32)
        weights = np.ones(len(ids), np.float32)
        if not self.is_crossing:
            opens = np.concatenate([[True], ids[:-1] == self.end_id])
            segments = np.cumsum(opens, dtype=np.int32)
            weights[opens] = 0
        weights[0] = 0
        padding = (0, self.length + 1 - len(ids))
        return {
            "tokens": np.pad(ids, padding, constant_values=self.end_id),
            "segments": np.pad(segments, padding),
            "weights": np.pad(weights, padding),
        }


@dataclass(frozen=True)
class ArrayRows:
    """Rows held in memory: tokens, segments, weights [number of rows, T+1]."""

    tokens: np.ndarray
    segments: np.ndarray
    weights: np.ndarray

    @property
    def length(self) -> int:
        """T, the number of targets a row can hold."""
        return self.tokens.shape[1] - 1

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, number: int) -> Row:
        return {
            "tokens": self.tokens[number],
            "segments": self.segments[number],
            "weights": self.weights[number],
        }


def joined(documents: Iterable[Sequence[int] | np.ndarray], end_id: int) -> np.ndarray:
    """Return the stream `end d0 end d1 end ...` as int32 ids."""
    end = np.array([end_id], np.int32)
    parts = [end]
    for document in documents:
        parts += [np.asarray(document, np.int32), end]
    return np.concatenate(parts)


def concat(stream: TokenStream, length: int, end_id: int) -> StreamRows:
    """Cut a stream into rows of `length` targets whose attention crosses documents (V3's)."""
    return _cut(stream, length, end_id, is_crossing=True)


def segments(stream: TokenStream, length: int, end_id: int) -> StreamRows:
    """Cut a stream into rows of `length` targets whose attention stays inside documents."""
    return _cut(stream, length, end_id, is_crossing=False)


def _cut(stream: TokenStream, length: int, end_id: int, *, is_crossing: bool) -> StreamRows:
    if length < 1:
        raise ValueError(f"length={length} is no row length; choose at least 1")
    if len(stream) < 3:
        raise UserError(f"a stream of {len(stream)} tokens holds no document; give more text")
    return StreamRows(stream, length, end_id, is_crossing)


def whole(
    documents: Sequence[Sequence[int]],
    length: int,
    *,
    weights: Sequence[Sequence[float]] | None = None,
) -> ArrayRows:
    """Pack uncut documents into rows of `length` + 1 tokens by best fit, longest first.

    `weights` says how much each token of each document counts as a target (default 1); the first of
    a document never counts, since nothing of its own document comes before it. Put the end token
    (and a begin token) into the documents if they are wanted.
    """
    sizes = [len(document) for document in documents]
    for number, size in enumerate(sizes):
        if not 2 <= size <= length + 1:
            raise UserError(
                f"document {number} has {size} tokens; whole documents need 2 to length + 1 = "
                f"{length + 1}; raise length or cut the document"
            )
    rows = best_fit(sizes, length + 1)
    shape = (len(rows), length + 1)
    packed = ArrayRows(np.zeros(shape, np.int32), np.zeros(shape, np.int32), np.zeros(shape, "f4"))
    for row, members in enumerate(rows):
        start = 0
        for segment, member in enumerate(members, 1):
            here = slice(start, start + sizes[member])
            packed.tokens[row, here] = documents[member]
            packed.segments[row, here] = segment
            packed.weights[row, here] = 1 if weights is None else weights[member]
            packed.weights[row, start] = 0
            start += sizes[member]
    return packed


def best_fit(sizes: Sequence[int], capacity: int) -> list[list[int]]:
    """Put each size, largest first, into the fullest bin that still holds it; bins of indices."""
    bins: list[list[int]] = []
    spaces: list[tuple[int, int]] = []  # (free space, bin), sorted
    for item in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        at = bisect_left(spaces, (sizes[item], -1))
        space, number = spaces.pop(at) if at < len(spaces) else (capacity, len(bins))
        if number == len(bins):
            bins.append([])
        bins[number].append(item)
        insort(spaces, (space - sizes[item], number))
    return bins


def fim(
    documents: Iterable[Sequence[int]],
    tokenizer: Tokenizer,
    *,
    rate: float = 0.1,
    seed: int = 0,
    first: int = 0,
) -> Iterator[np.ndarray]:
    """Yield each document, a share `rate` of them rearranged for fill-in-the-middle (V3: 0.1).

    The cuts of a document depend on `seed` and its number, counted from `first`.
    """
    ids = (tokenizer.fim_begin_id, tokenizer.fim_hole_id, tokenizer.fim_end_id)
    if rate > 0 and None in ids:
        raise UserError(f"fim rate {rate} needs a tokenizer with FIM tokens; set the rate to 0")
    for number, document in enumerate(documents, first):
        rng = np.random.default_rng([seed, number])
        plain = np.asarray(document, np.int32)
        yield _rearranged(plain, ids, rng) if rng.random() < rate else plain


def _rearranged(ids: np.ndarray, fim_ids: tuple, rng: np.random.Generator) -> np.ndarray:
    begin, hole, end = (np.array([i], np.int32) for i in fim_ids)
    left, right = np.sort(rng.integers(0, len(ids) + 1, 2))
    prefix, middle, suffix = np.split(ids, [left, right])
    return np.concatenate([begin, prefix, hole, suffix, end, middle])
