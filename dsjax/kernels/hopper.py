"""The FP8 product of Hopper GPUs, promoted in registers (V3 report sec. 3.3.2, fig. 7b).

Twin of `numerics.codes.multiply`. There every partial sum over 128 of K is a product of its own,
which XLA writes to memory and reads again: at K = 7168 that is 56 times the output. Here it stays
in registers:

    a producer warpgroup   copies the next tiles of codes and scales to shared memory (TMA)
    two consumers          E4M3 tensor-core products over 128 of K (WGMMA), 64 x 128 of the output
                           each; then sum += partial * (row scale * column scale), in float32

While one consumer promotes, the tensor cores work for the other, as in DeepSeek's DeepGEMM. Thread
blocks are as many as multiprocessors and take output tiles in turn, so that the producer is in the
next tile while the consumers still write the last.

WGMMA reads 8-bit operands with K contiguous. A weight summed over its rows is turned by XLA before;
activations and gradients are turned as they are quantized.

Arrays: a [E, M, K], b [E, N, K] codes, K in whole tiles of 128 (short ones filled up with zeros),
scales [E, K / 128, M] and [E, K / 128, N], E batched products (experts).
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.custom_partitioning import custom_partitioning
from jax.experimental.pallas import mosaic_gpu as gpu
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dsjax.numerics import codes, scaled
from dsjax.numerics.codes import Grid, grid
from dsjax.numerics.gemm import Machine
from dsjax.numerics.scaled import Scaled
from dsjax.numerics.vary import varies, vary

TILE = 128  # of M, N and K; the report's N_C
CONSUMERS = 2
ROWS = TILE // CONSUMERS  # of a consumer's part of an output tile: WGMMA's own 64
STEPS = 4  # tiles of K in shared memory: 33 KiB each, beside 64 KiB of output
MULTIPROCESSORS = 132  # of H100 SXM, H200 and GH200
BAND = 8  # columns of output tiles that are made together, so that the second level cache serves
PRODUCER_REGISTERS = 40


def multiply(a: Scaled, b: Scaled, sum_a: int, sum_b: int, interpret: Any = False) -> Array:
    """Sum over one dim of each (counted from the end), as `codes.multiply`; leading dims batched.

    Operands of two formats are left to that twin: WGMMA's are of one. `interpret`: see `product`.
    """
    if a.codes.dtype != b.codes.dtype:
        return codes.multiply(a, b, sum_a, sum_b)
    left, right = grid(a), grid(b)
    read = operands(left, right, sum_a, sum_b)
    if interpret or jax.sharding.get_abstract_mesh().manual_axes:  # one device's own operands
        y = vary(product(*read, interpret=interpret), set().union(*map(varies, read)))
    else:
        y = partitioned(*read)
    rows, columns = len(left.owner[sum_a - 1]), len(right.owner[sum_b - 1])
    return y[:, :rows, :columns].reshape(*left.codes.shape[:-2], rows, columns)


def operands(a: Grid, b: Grid, sum_a: int, sum_b: int) -> tuple[Array, Array, Array, Array]:
    """What `product` reads: codes and scales of both, K last, cut where a tile of either begins."""
    starts = tile_starts(a.owner[2 - sum_a], b.owner[2 - sum_b])
    x, by_row = operand(a, sum_a, starts)
    w, by_column = operand(b, sum_b, starts)
    return x, w, by_row, by_column


def tile_starts(owner_a: np.ndarray, owner_b: np.ndarray) -> np.ndarray:
    """Where a tile of K begins in either operand, and the end."""
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
    """Scales of the tiles that own each entry of a dim; taken as they are where each has its own.

    (A gather of scales that lie on several devices would bring all of them to each.)
    """
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


def product(a: Array, b: Array, by_row: Array, by_column: Array,
            interpret: Any = False) -> Array:
    """One device's products, [E, M, N] float32; M, N and K are multiples of 128.

    `interpret` is Pallas' parameters of a simulated GPU. Its simulation of WGMMA reads no turned
    operand (jax 0.10), so b is turned before there.
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
    """What one thread block does: every so many-th output tile."""
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


def _partition(mesh: Mesh, args: Sequence[Any], result: Any) -> Any:
    """Rows, columns and experts where they are; sums over K of several devices are added up."""
    del result

    def axes(arg: int, dim: int) -> Any:
        spec = tuple(args[arg].sharding.spec)
        return spec[dim] if dim < len(spec) else None

    expert, row, column, k = axes(0, 0), axes(0, 1), axes(1, 1), axes(0, 2)
    taken = {name for dim in (expert, row, k) for name in _names(dim)}
    column = None if taken & set(_names(column)) else column
    count = int(np.prod([mesh.shape[name] for name in _names(k)]))
    if args[0].shape[2] % (count * TILE):
        k = None  # a tile would lie on two devices

    def local(a: Array, b: Array, by_row: Array, by_column: Array) -> Array:
        y = product(a, b, by_row, by_column)
        return lax.psum(y, _names(k)) if k else y

    specs = [(expert, row, k), (expert, column, k), (expert, k, row), (expert, k, column)]
    where = [NamedSharding(mesh, PartitionSpec(*spec)) for spec in specs]
    return mesh, local, NamedSharding(mesh, PartitionSpec(expert, row, column)), tuple(where)


def _names(dim: Any) -> tuple[str, ...]:
    """The mesh axes that a dim is sharded over."""
    return () if dim is None else (dim,) if isinstance(dim, str) else tuple(dim)


partitioned = custom_partitioning(lambda a, b, by_row, by_column: product(a, b, by_row, by_column))
partitioned.def_partition(partition=_partition,
                          sharding_rule="e m k, e n k, e s m, e s n -> e m n")

MACHINE = Machine(scaled.quantize, multiply, codes=lambda q: q)
