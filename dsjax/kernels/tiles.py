"""Operands of the FP8 kernels: codes and scales cut, filled up and laid out as they read them.

A kernel's `product` is of one device and reads

    a [E, M, K], b [E, N, K]                       codes, E batched products (experts)
    by_row [E, K / 128, M], by_column [E, K / 128, N]   float32 scales

and returns [E, M, N] float32, where M, N and K are multiples of 128. Rows, columns and tiles of K
that are shorter are filled up with zeros here, and K is cut where a tile of either operand begins
(parts of a weight that are not a multiple of 128 wide).
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jax import Array

from dsjax.numerics import codes
from dsjax.numerics.codes import Grid, grid
from dsjax.numerics.gemm import MatmulImpl
from dsjax.numerics.scaled import Scaled
from dsjax.numerics.vary import varies, vary

TILE = 128  # of M, N and K; the report's N_C
Product = Callable[[Array, Array, Array, Array], Array]
"""a, b, by_row, by_column -> [E, M, N]."""


def machine(product: Product) -> MatmulImpl:
    """The MatmulImpl that keeps operands as codes and multiplies one device's own by a kernel."""

    def multiply(a: Scaled, b: Scaled, sum_a: int, sum_b: int) -> Array:
        if a.codes.dtype != b.codes.dtype:  # kernels read operands of one format
            return codes.multiply(a, b, sum_a, sum_b)
        return multiplied(product, a, b, sum_a, sum_b)

    return dataclasses.replace(codes.MATMUL, multiply=multiply, reference=codes.MATMUL)


def multiplied(product: Product, a: Scaled, b: Scaled, sum_a: int, sum_b: int) -> Array:
    """Sum over one dim of each (counted from the end), as `codes.multiply`, by a kernel."""
    left, right = grid(a), grid(b)
    read = operands(left, right, sum_a, sum_b)
    y = vary(product(*read), varies(read[0]))
    rows, columns = len(left.owner[sum_a - 1]), len(right.owner[sum_b - 1])
    return y[:, :rows, :columns].reshape(*left.codes.shape[:-2], rows, columns)


def operands(a: Grid, b: Grid, sum_a: int, sum_b: int) -> tuple[Array, Array, Array, Array]:
    """Arguments of a `product`; in a shard_map all vary over the axes that any does."""
    starts = tile_starts(a.owner[2 - sum_a], b.owner[2 - sum_b])
    read = (*operand(a, sum_a, starts), *operand(b, sum_b, starts))
    axes = set().union(*map(varies, read))
    x, by_row, w, by_column = (vary(part, axes) for part in read)
    return x, w, by_row, by_column


def tile_starts(owner_a: np.ndarray, owner_b: np.ndarray) -> np.ndarray:
    """Starts of the tiles of K in either operand, and the end."""
    inside = np.flatnonzero(np.diff(owner_a) | np.diff(owner_b)) + 1
    return np.array([0, *inside, len(owner_a)])


def operand(g: Grid, summed: int, starts: np.ndarray) -> tuple[Array, Array]:
    """Codes [E, rows, K] and scales [E, K / 128, rows], rows and tiles of K filled up to 128."""
    q = g.codes if summed == 1 else g.codes.swapaxes(-1, -2)
    scales = g.scales if summed == 1 else g.scales.swapaxes(-1, -2)
    scales = of_tiles(scales, g.owner[summed - 1], -2)
    scales = of_tiles(scales, g.owner[2 - summed][starts[:-1]], -1)
    q = q.reshape(-1, *q.shape[-2:])
    scales = scales.reshape(-1, *scales.shape[-2:]).swapaxes(-1, -2)
    rows = -q.shape[1] % TILE
    return (fill_tiles(jnp.pad(q, ((0, 0), (0, rows), (0, 0))), starts),
            jnp.pad(scales, ((0, 0), (0, 0), (0, rows))))


def of_tiles(scales: Array, owner: np.ndarray, dim: int) -> Array:
    """Scales of the tiles that own each entry of a dim; as they are where each has its own."""
    if np.array_equal(owner, np.arange(scales.shape[dim])):
        return scales
    return jnp.take(scales, jnp.asarray(owner), axis=dim)


def fill_tiles(q: Array, starts: np.ndarray) -> Array:
    """Codes [E, rows, K] with every tile of K 128 long, zeros after the end of a shorter one."""
    lengths = np.diff(starts)
    if np.all(lengths[:-1] == TILE):
        return jnp.pad(q, ((0, 0), (0, 0), (0, TILE - lengths[-1])))
    return jnp.concatenate(
        [jnp.pad(q[..., start:stop], ((0, 0), (0, 0), (0, TILE - stop + start)))
         for start, stop in itertools.pairwise(starts)], axis=-1)
