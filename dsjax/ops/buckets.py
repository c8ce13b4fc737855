"""Numbers in buckets: the count of each bucket, and the rank of each number within its bucket.

Two forms of each, chosen by platform and equal to the last bit. One sorts or scatters, cheap on a
CPU or GPU. A TPU does either by a sort, whose program grows with what is sorted: those of one step
of V3 took most of the ten minutes that it took to compile, so there buckets are counted by
comparing with each of them. XLA's cumulative sum for a TPU is such a program too, and so is one
that reads numbers as a router leaves them, a few in a row: hence sums over triangles, and barriers
before and after.

Axes: A numbers, N buckets.
"""

from __future__ import annotations

import functools

import jax.numpy as jnp
from jax import Array, lax

STRETCH = 128  # numbers of a stretch: a TPU's lanes


def places(bucket: Array, count: int) -> Array:
    """Rank of each number within its bucket: bucket [A] in [0, N) -> [A] int32.

    Numbers in no bucket get any place.
    """
    return lax.platform_dependent(
        bucket, tpu=functools.partial(places_by_counting, count=count),
        default=functools.partial(places_by_sorting, count=count))


def places_by_sorting(bucket: Array, count: int) -> Array:
    """As `places`, from a stable sort."""
    bucket = jnp.where((bucket >= 0) & (bucket < count), bucket, count)
    order = jnp.argsort(bucket, stable=True).astype(jnp.int32)
    sizes = jnp.zeros(count, jnp.int32).at[bucket].add(1)
    at = jnp.arange(bucket.size, dtype=jnp.int32)
    place = at - (jnp.cumsum(sizes, dtype=jnp.int32) - sizes)[bucket[order]]
    return jnp.zeros(bucket.size, jnp.int32).at[order].set(place, unique_indices=True)


def places_by_counting(bucket: Array, count: int) -> Array:
    """As `places`, from a running count of every bucket."""
    bucket = lax.optimization_barrier(bucket)
    is_in = (bucket[None] == jnp.arange(count, dtype=bucket.dtype)[:, None]).astype(jnp.int32)
    place = (is_in * (running(is_in) - 1)).sum(axis=0, dtype=jnp.int32)
    return lax.optimization_barrier(place)


def running(a: Array) -> Array:
    """Sums of a [..., A] int32 up to and with each place: of stretches, then of what precedes."""
    length = a.shape[-1]
    if length <= STRETCH:
        at = jnp.arange(length, dtype=jnp.int32)
        is_before = jnp.expand_dims(at[None] <= at[:, None], range(a.ndim - 1))
        return jnp.where(is_before, a[..., None, :], 0).sum(-1, dtype=a.dtype)
    even = jnp.pad(a, [(0, 0)] * (a.ndim - 1) + [(0, -length % STRETCH)])
    within = running(even.reshape(*a.shape[:-1], -1, STRETCH))
    totals = within[..., -1]
    whole = within + (running(totals) - totals)[..., None]
    return whole.reshape(*a.shape[:-1], -1)[..., :length]


def sizes(bucket: Array, count: int) -> Array:
    """Numbers in each bucket: bucket [A] -> [N] int32."""
    return lax.platform_dependent(
        bucket, tpu=functools.partial(sizes_by_comparing, count=count),
        default=functools.partial(sizes_by_adding, count=count))


def sizes_by_adding(bucket: Array, count: int) -> Array:
    """As `sizes`, adding one at each number's bucket."""
    bucket = jnp.where((bucket >= 0) & (bucket < count), bucket, count)
    return jnp.zeros(count, jnp.int32).at[bucket].add(1)


def sizes_by_comparing(bucket: Array, count: int) -> Array:
    """As `sizes`, looking for each bucket in all numbers."""
    return (bucket[None] == jnp.arange(count, dtype=bucket.dtype)[:, None]).sum(1, dtype=jnp.int32)
