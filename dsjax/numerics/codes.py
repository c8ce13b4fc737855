"""Products of the codes themselves, for machines that multiply 8-bit floats (V3 report fig. 7b).

A dot product of E4M3 codes over at most 128 of K is one instruction stream of the tensor core; its
float32 result is multiplied by the two scales of its tiles and added to the sum, which is the
report's promotion. The emulated products (gemm.EMULATED) sum the same terms in another order.

Where the tiles of the two operands do not end together (parts of a weight that are not a multiple
of 128 wide), the sum is cut at the ends of either, so that every partial sum has one scale a row
and one a column. The loop over K is written out: programs grow with K / 128, and XLA keeps every
partial sum in memory (experiments/fp8_vs_bf16). The kernels of dsjax.kernels do not.

Axes: M rows, K summed, N columns; leading dims (experts) are batched.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from dsjax.numerics import scaled
from dsjax.numerics.gemm import MatmulImpl
from dsjax.numerics.scaled import Scaled


@dataclasses.dataclass(frozen=True)
class Grid:
    """A quantized operand as a matrix: parts side by side are columns, and tiles are numbered."""

    codes: Array  # [..., rows, columns]
    scales: Array  # [..., tile rows, tile columns] float32
    owner: tuple[np.ndarray, np.ndarray]  # the tile row of each row, the tile column of each column


def grid(q: Scaled) -> Grid:
    """Flatten the parts that a weight was tiled apart in."""
    tile = [min(t, n) for t, n in zip(q.tile, q.shape[q.codes.ndim - len(q.tile) :])]
    rows, columns = np.arange(q.shape[-len(tile)]) // tile[0], np.arange(q.shape[-1]) // tile[-1]
    if len(tile) == 3:
        first = np.arange(q.shape[-2])[:, None] * q.scales.shape[-1]
        columns = (first + columns).reshape(-1)
    lead = q.shape[: q.codes.ndim - len(tile)]
    values = scaled.scale_values(q.scales)
    return Grid(q.codes.reshape(*lead, len(rows), len(columns)),
                values.reshape(*lead, values.shape[len(lead)], -1), (rows, columns))


def multiply(a: Scaled, b: Scaled, sum_a: int, sum_b: int) -> Array:
    """Sum over one dim of each (counted from the end), partial sums scaled in float32."""
    left, right = grid(a), grid(b)
    owner_a, owner_b = left.owner[2 - sum_a], right.owner[2 - sum_b]
    ends = np.flatnonzero(np.diff(owner_a) | np.diff(owner_b)) + 1
    total: Array | None = None
    for start, stop in zip([0, *ends], [*ends, len(owner_a)]):
        part = _dot(_cut(left.codes, start, stop, sum_a), _cut(right.codes, start, stop, sum_b),
                    sum_a, sum_b)
        by_row = _line(left, owner_a[start], sum_a)
        by_column = _line(right, owner_b[start], sum_b)
        part = part * by_row[..., :, None] * by_column[..., None, :]
        total = part if total is None else total + part
    assert total is not None, "a product sums over at least one element"
    return total


def _cut(codes: Array, start: int, stop: int, dim: int) -> Array:
    return lax.slice_in_dim(codes, start, stop, axis=codes.ndim - dim)


def _dot(a: Array, b: Array, sum_a: int, sum_b: int) -> Array:
    batch = tuple(range(a.ndim - 2))
    dims = (((a.ndim - sum_a,), (b.ndim - sum_b,)), (batch, batch))
    return lax.dot_general(a, b, dims, preferred_element_type=jnp.float32)


def _line(g: Grid, tile: int, summed: int) -> Array:
    """The scales of one tile along the summed dim, one for each entry of the other."""
    line = lax.index_in_dim(g.scales, int(tile), g.scales.ndim - summed, keepdims=False)
    return line[..., g.owner[summed - 1]]


MATMUL = MatmulImpl(scaled.quantize, multiply, from_codes=lambda q: q)
