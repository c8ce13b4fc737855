"""An n-gram model of bytes: what a held-out text costs without any learning of features.

A floor to hold a trained model against, in the unit that needs no common tokenizer, bits per byte
(V3 section 4.4 compares models so). Interpolated Witten-Bell smoothing: after context h, seen n(h)
times with t(h) different next bytes, h' being h without its first byte,

    p(b | h) = (n(h b) + t(h) p(b | h')) / (n(h) + t(h)),    p(b | no context) from 1 / 256,

and p(b | h) = p(b | h') where h was never seen. The n-grams do not cross documents.
"""

from collections.abc import Iterator, Sequence

import numpy as np

BYTES = 256


def cost(train: Sequence[bytes], heldout: Sequence[bytes], order: int = 5) -> float:
    """Return the mean -log2 p of the bytes of `heldout` under the n-grams of `train`, n = order.

    Takes a few seconds and about 40 bytes of memory a byte of `train`.
    """
    if not 1 <= order <= 7:
        raise ValueError(f"order={order} is not from 1 to 7, what fits an integer; choose 5")
    if not any(heldout) or not any(train):
        raise ValueError("train and heldout must both hold at least one byte")
    seen, asked = _windows(train, order), _windows(heldout, order)
    p = np.full(sum(map(len, heldout)), 1 / BYTES)
    for (windows, is_whole), (wanted, is_asked) in zip(seen, asked, strict=True):
        p = np.where(is_asked, _interpolated(windows[is_whole], wanted, p), p)
    return float(-np.log2(p).mean())


def _interpolated(windows: np.ndarray, wanted: np.ndarray, lower: np.ndarray) -> np.ndarray:
    """Mix the counts of one order into the probabilities `lower` of the order below it.

    `windows` are all n-grams of the training text, `wanted` [N] those asked for, as integers whose
    last byte is the predicted one.
    """
    grams, counts = np.unique(windows, return_counts=True)
    contexts, first = np.unique(grams >> 8, return_index=True)
    totals = np.add.reduceat(counts, first)
    kinds = np.diff(first, append=len(grams))
    count = _look_up(grams, counts, wanted)
    total, kind = (_look_up(contexts, a, wanted >> 8) for a in (totals, kinds))
    return np.where(total > 0, (count + kind * lower) / np.maximum(total + kind, 1), lower)


def _look_up(keys: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Return the value of each wanted key, 0 where it is absent. keys sorted."""
    if not len(keys):
        return np.zeros(len(wanted), np.int64)
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[at] == wanted, values[at], 0)


def _windows(documents: Sequence[bytes], order: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield for n = 1..order: the n bytes up to each byte as integers, and whether n exist."""
    data = np.frombuffer(b"".join(documents), np.uint8)
    sizes = np.array([len(d) for d in documents])
    depth = np.arange(len(data)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    window = np.zeros(len(data), np.int64)
    for n in range(order):
        earlier = np.zeros(len(data), np.int64)
        earlier[n:] = data[: max(len(data) - n, 0)]
        window = window | (earlier << (8 * n))
        yield window, depth >= n
