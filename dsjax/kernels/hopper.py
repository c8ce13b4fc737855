"""The FP8 product of Hopper GPUs, promoted in registers (V3 report sec. 3.3.2, fig. 7b).

Fast form of `numerics.codes.multiply`, where every partial sum over 128 of K is one product,
which XLA writes to memory and reads again: at K = 7168 that is 56 times the output. Here it stays
in registers:

    a producer warpgroup   copies the next tiles of codes and scales to shared memory (TMA)
    two consumers          E4M3 tensor-core products over 128 of K (WGMMA), 64 x 128 of the output
                           each; then sum += partial * (row scale * column scale), in float32

While one consumer promotes, the tensor cores work for the other, as in DeepSeek's DeepGEMM. Thread
blocks are as many as multiprocessors and take output tiles in turn, so that the producer is in the
next tile while the consumers still write the last.

WGMMA reads 8-bit operands with K contiguous. XLA transposes a weight that is summed over its rows;
activations and gradients are transposed as they are quantized.

Arrays and dims are those of `tiles`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as gpu

from dsjax.kernels.tiles import TILE, machine

CONSUMERS = 2
ROWS = TILE // CONSUMERS  # of a consumer's part of an output tile: WGMMA's own 64
STEPS = 4  # tiles of K in shared memory: 33 KiB each, beside 64 KiB of output
MULTIPROCESSORS = 132  # of H100 SXM, H200 and GH200
BAND = 8  # columns of output tiles that are made together, so that the second level cache serves
PRODUCER_REGISTERS = 40


@functools.partial(jax.jit, static_argnames="interpret")  # equal ones are compiled once
def product(a: Array, b: Array, by_row: Array, by_column: Array,
            interpret: Any = False) -> Array:
    """One device's products, [E, M, N] float32; M, N and K are multiples of 128.

    `interpret` is Pallas' parameters of a simulated GPU. Its simulation of WGMMA does not transpose
    (jax 0.10), so b is transposed before.
    """
    experts, m, k = a.shape
    n = b.shape[1]
    b = b.reshape(experts * n, k)
    body = functools.partial(_block, experts=experts, is_turned=not interpret)
    y = gpu.kernel(
        body,
        out_type=jax.ShapeDtypeStruct((experts * m, n), jnp.float32),
        grid=(min(MULTIPROCESSORS, experts * (m // TILE) * (n // TILE)),),
        grid_names=("block",),
        num_threads=CONSUMERS + 1,
        thread_name="warpgroup",
        compiler_params=gpu.CompilerParams(
            lowering_semantics=gpu.LoweringSemantics.Warpgroup),
        interpret=interpret or None,
    )(a.reshape(experts * m, k), b.T if interpret else b,
      by_row.swapaxes(0, 1).reshape(-1, experts * m),
      by_column.swapaxes(0, 1).reshape(-1, experts * n))
    return y.reshape(experts, m, n)


def _block(a: Any, b: Any, by_row: Any, by_column: Any, y: Any, *, experts: int,
           is_turned: bool) -> None:
    """Run one thread block: every so many-th output tile."""
    tiles_m, tiles_n = y.shape[0] // experts // TILE, y.shape[1] // TILE
    run = functools.partial(_pipeline, tiles_k=a.shape[1] // TILE, is_turned=is_turned)

    def tiles(allocations: Any, out: Any) -> None:
        consumer = lax.axis_index("warpgroup")
        mine = pl.ds(consumer * ROWS, ROWS)

        @gpu.nd_loop((experts * tiles_m * tiles_n,), collective_axes="block")
        def _tile(info: Any) -> None:
            expert, at = info.index[0] // (tiles_m * tiles_n), info.index[0] % (tiles_m * tiles_n)
            i, j = gpu.planar_snake(at, (tiles_m, tiles_n), 1, BAND)
            rows = pl.ds((expert * tiles_m + i) * TILE, TILE)
            columns = pl.ds((expert * tiles_n + j) * TILE, TILE)

            def consume(sum_over_k: Callable[[Array], Array]) -> None:
                total = sum_over_k(jnp.zeros((ROWS, TILE), jnp.float32))
                gpu.wait_smem_to_gmem(0, wait_read_only=True)  # the tile before has left `out`
                out[consumer] = total
                gpu.commit_smem()
                gpu.copy_smem_to_gmem(out.at[consumer],
                                      y.at[rows, pl.ds(j * TILE, TILE)].at[mine])

            step = functools.partial(_promote, mine=mine, is_turned=is_turned)
            run(step, consume)(a.at[rows], b.at[columns] if is_turned else b.at[:, columns],
                               by_row.at[:, rows], by_column.at[:, columns],
                               allocations=allocations)

    pl.run_scoped(tiles, run(_nothing, _nothing).get_allocations(a, b, by_row, by_column),
                  gpu.SMEM((CONSUMERS, ROWS, TILE), jnp.float32), collective_axes="warpgroup")
    gpu.wait_smem_to_gmem(0)


def _nothing(*_: Any, **__: Any) -> None:
    """Stands for bodies where only a pipeline's allocations are asked for."""


def _pipeline(step: Callable[..., Any], consume: Callable[..., Any], *, tiles_k: int,
              is_turned: bool) -> Any:
    """The loop over tiles of K, the producer some steps ahead of the consumers."""
    swizzled = (gpu.TilingTransform((8, TILE)), gpu.SwizzleTransform(TILE))
    of_b = (gpu.BlockSpec((TILE, TILE), lambda k: (0, k), transforms=swizzled) if is_turned
            else gpu.BlockSpec((TILE, TILE), lambda k: (k, 0)))
    of_scales = gpu.BlockSpec((1, TILE), lambda k: (k, 0))
    return gpu.emit_pipeline_warp_specialized(
        step,
        grid=(tiles_k,),
        in_specs=[gpu.BlockSpec((TILE, TILE), lambda k: (0, k), transforms=swizzled), of_b,
                  of_scales, of_scales],
        max_concurrent_steps=min(STEPS, tiles_k),
        memory_registers=PRODUCER_REGISTERS,
        num_compute_wgs=CONSUMERS,
        wg_axis="warpgroup",
        compute_context=consume,
    )


def _promote(_: Any, a: Any, b: Any, by_row: Any, by_column: Any, total: Array, *, mine: Any,
             is_turned: bool) -> Array:
    """total + (a b^T) * scales over one tile of K, this consumer's rows."""

    def dot(partial: Any) -> Array:
        gpu.wgmma(partial, a.at[mine], gpu.transpose_ref(b, (1, 0)) if is_turned else b)
        return partial[...]

    partial = pl.run_scoped(dot, gpu.ACC((ROWS, TILE), jnp.float32))
    rows = lax.broadcast_in_dim(by_row[0, mine], (ROWS, TILE), (0,))
    columns = lax.broadcast_in_dim(by_column[0, :], (ROWS, TILE), (1,))
    return total + partial * (rows * columns)


MATMUL = machine(product)
