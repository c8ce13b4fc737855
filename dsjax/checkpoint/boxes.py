"""Boxes of arrays: where two meet, and the numbers in one, wherever its array lies."""

from __future__ import annotations

import functools

import jax
import numpy as np
from jax import Array

Index = tuple[slice, ...]
"""A box of an array: a slice with start and stop for each dim."""


def region(array: Array | np.ndarray, index: Index) -> np.ndarray:
    """Return the numbers in a box of an array, from whichever devices hold them."""
    if isinstance(array, np.ndarray):
        return array[index]
    if not array.is_fully_addressable:
        raise ValueError("an array is spread over several processes; save from one that holds all")
    shape = tuple(s.stop - s.start for s in index)
    out = np.empty(shape, array.dtype)
    for shard in array.addressable_shards:
        if shard.replica_id:
            continue
        bounds = bounded(shard.index, array.shape)
        inside = meet(index, bounds)
        if inside is None:
            continue
        target, source = relative(inside, index), relative(inside, bounds)
        if next(iter(shard.data.devices())).platform == "cpu":
            out[target] = np.asarray(shard.data)[source]  # a view, not a copy
            continue
        starts = tuple(np.int32(s.start) for s in source)
        sizes = tuple(s.stop - s.start for s in source)
        out[target] = np.asarray(_slice(shard.data, starts, sizes))
    return out


@functools.partial(jax.jit, static_argnums=2)
def _slice(shard: Array, starts: tuple, sizes: tuple[int, ...]) -> Array:
    return jax.lax.dynamic_slice(shard, starts, sizes)


def bounded(index: tuple, shape: tuple[int, ...]) -> Index:
    """Return an index with every start and stop written out."""
    index = tuple(index) + (slice(None),) * (len(shape) - len(index))
    return tuple(slice(*s.indices(n)[:2]) for s, n in zip(index, shape))


def meet(a: Index, b: Index) -> Index | None:
    """Return the box that two boxes share; None if there is none."""
    both = tuple(slice(max(x.start, y.start), min(x.stop, y.stop)) for x, y in zip(a, b))
    return both if all(s.start < s.stop for s in both) else None


def relative(inside: Index, whole: Index) -> Index:
    """Return a box in the coordinates of one around it."""
    return tuple(slice(i.start - w.start, i.stop - w.start) for i, w in zip(inside, whole))
