"""The FP8 product of TPUs that multiply 8-bit floats (TPU7x), promoted on the chip (fig. 7b).

Fast form of `numerics.codes.multiply`, whose partial sums over 128 of K XLA keeps in memory.
Here a block of the output stays in the chip's vector memory while the blocks of K pass by:

    sum += (a b^T over one tile of K, by the matrix unit) * (row scale * column scale)

Arrays and dims are those of `tiles`. The row scales of all K lie beside a block, as a TPU's lanes
are 128 wide anyway; one tile's are picked out of the lanes by a masked sum.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu

from dsjax.kernels.tiles import TILE, machine

BLOCKS = (512, 256, 128)  # of rows and columns, the longest that divides them
STEPS = (4, 2, 1)  # tiles of K of one block


@functools.partial(jax.jit, static_argnames="interpret")  # equal ones are compiled once
def product(a: Array, b: Array, by_row: Array, by_column: Array,
            interpret: bool = False) -> Array:
    """One device's products, [E, M, N] float32; M, N and K are multiples of 128."""
    experts, m, k = a.shape
    n, tiles = b.shape[1], k // TILE
    rows, columns = (next(x for x in BLOCKS if size % x == 0) for size in (m, n))
    step = next(x for x in STEPS if tiles % x == 0)
    return pl.pallas_call(
        functools.partial(_block, step=step),
        out_shape=jax.ShapeDtypeStruct((experts, m, n), jnp.float32,
                                       manual_axis_type=jax.typeof(a).mat),
        grid=(experts, m // rows, n // columns, tiles // step),
        in_specs=[
            pl.BlockSpec((None, rows, step * TILE), lambda e, i, j, s: (e, i, s)),
            pl.BlockSpec((None, columns, step * TILE), lambda e, i, j, s: (e, j, s)),
            pl.BlockSpec((None, rows, tiles), lambda e, i, j, s: (e, i, 0)),
            pl.BlockSpec((None, tiles, columns), lambda e, i, j, s: (e, 0, j)),
        ],
        out_specs=pl.BlockSpec((None, rows, columns), lambda e, i, j, s: (e, i, j)),
        compiler_params=tpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "parallel", "arbitrary")),
        interpret=interpret,
    )(a, b, by_row.swapaxes(1, 2), by_column)


def _block(a: Any, b: Any, by_row: Any, by_column: Any, y: Any, *, step: int) -> None:
    """Add some tiles of K to a block of the output."""
    first = pl.program_id(3) * step

    @pl.when(first == 0)
    def _() -> None:
        y[...] = jnp.zeros_like(y)

    lane = lax.broadcasted_iota(jnp.int32, by_row.shape, 1)
    for tile in range(step):
        inside = slice(tile * TILE, (tile + 1) * TILE)
        partial = lax.dot_general(a[:, inside], b[:, inside], (((1,), (1,)), ((), ())),
                                  preferred_element_type=jnp.float32)
        mine = jnp.where(lane == first + tile, by_row[...], 0.0)
        scale = mine.sum(axis=1, keepdims=True) * by_column[pl.ds(first + tile, 1), :]
        y[...] += partial * scale


MATMUL = machine(product)
