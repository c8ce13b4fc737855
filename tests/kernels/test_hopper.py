"""The kernel is its twin: what it reads is cut and scaled as there, and its sums are the same.

Codes are small whole numbers and scales powers of two, so that every sum is exact and equal to the
bit in any order. The kernel runs in Pallas' simulation of a GPU's threads, memory and barriers.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import mosaic_gpu
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from dsjax.kernels import hopper
from dsjax.numerics import codes
from dsjax.numerics.formats import E4M3, E5M2, UE8M0
from dsjax.numerics.scaled import Scaled

FPROP, DGRAD, WGRAD = (1, 2), (1, 1), (2, 2)


def simulated_gpu():
    """Pallas' parameters of one; jax 0.10 does not export them."""
    if hasattr(mosaic_gpu, "InterpretGPUParams"):
        return mosaic_gpu.InterpretGPUParams()
    from jax._src.pallas.mosaic_gpu.interpret.params import InterpretGPUParams

    return InterpretGPUParams()


def held(seed, tile, *shape, dtype=E4M3.dtype):
    """Codes from -8 to 8 with scales from 1/4 to 4."""
    rng = np.random.default_rng(seed)
    first = len(shape) - len(tile)
    tiles = [-(-n // t) for n, t in zip(shape[first:], tile)]
    scales = np.exp2(rng.integers(-2, 3, (*shape[:first], *tiles)))
    return Scaled(jnp.asarray(rng.integers(-8, 9, shape), dtype),
                  jnp.asarray(scales, jnp.float32).astype(UE8M0), tile)


def operands_of(product, m, k, n, lead=()):
    """What a Linear's product reads, M rows, K in and N out: tokens, and weights or gradients."""
    if product == FPROP:
        return held(1, (1, 128), *lead, m, k), held(2, (128, 128), *lead, k, n)
    if product == DGRAD:
        return held(1, (1, 128), *lead, m, n), held(2, (128, 128), *lead, k, n)
    return held(1, (128, 1), *lead, m, k), held(2, (128, 1), *lead, m, n)


def plain(a, b, by_row, by_column):
    """The definition of `product`, a sum over tiles of K."""
    tiles = by_row.shape[1]
    a, b = (x.astype(jnp.float32).reshape(*x.shape[:2], tiles, -1) for x in (a, b))
    parts = jnp.einsum("emtk,entk->etmn", a, b)
    return (parts * by_row[..., :, None] * by_column[..., None, :]).sum(1)


def by_definition(a, b, sum_a, sum_b):
    """The twin's result from what the kernel would read."""
    left, right = codes.grid(a), codes.grid(b)
    y = plain(*hopper.operands(left, right, sum_a, sum_b))
    expected = codes.multiply(a, b, sum_a, sum_b)
    return y[:, : expected.shape[-2], : expected.shape[-1]].reshape(expected.shape), expected


@pytest.mark.parametrize("product", [FPROP, DGRAD, WGRAD], ids=["fprop", "dgrad", "wgrad"])
@pytest.mark.parametrize(("sizes", "lead"), [
    ((128, 256, 384), ()), ((5, 300, 70), ()), ((130, 129, 257), (3,)), ((1, 1, 1), (2, 2)),
], ids=str)
def test_what_is_read_makes_the_twin_s_product(product, sizes, lead):
    actual, expected = by_definition(*operands_of(product, *sizes, lead), *product)
    assert jnp.any(expected)
    np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("hidden", [128, 70, 200])
def test_parts_that_end_inside_a_tile_are_cut_there(hidden):
    """Gate and up side by side, tiled apart: Dgrad sums over both."""
    tokens, apart = held(1, (1, 128), 9, 2 * hidden), held(2, (128, 1, 128), 150, 2, hidden)
    actual, expected = by_definition(tokens, apart, *DGRAD)
    np.testing.assert_array_equal(actual, expected)


def test_the_simulated_kernel_makes_the_twin_s_product_to_the_bit(monkeypatch):
    """Eight output tiles of two experts on three thread blocks, three tiles of K, short ends."""
    monkeypatch.setattr(hopper, "MULTIPROCESSORS", 3)
    a, b = operands_of(FPROP, 130, 300, 129, (2,))
    actual = hopper.multiply(a, b, *FPROP, interpret=simulated_gpu())
    np.testing.assert_array_equal(actual, codes.multiply(a, b, *FPROP))


def test_operands_of_two_formats_are_left_to_the_twin():
    a, b = held(1, (1, 128), 4, 256, dtype=E5M2.dtype), held(2, (128, 128), 256, 8)
    np.testing.assert_array_equal(hopper.multiply(a, b, *FPROP), codes.multiply(a, b, *FPROP))


@pytest.mark.parametrize(("specs", "sums"), [
    ((("x",), ()), 0), (((None, "x"), (None, "x")), 1), (((), ("x",)), 0),
], ids=["rows", "summed", "columns"])
def test_on_a_mesh_rows_and_columns_stay_and_sums_are_added_up(specs, sums, monkeypatch):
    """The partition rule, with the definition in the kernel's place: Fprop, Wgrad, columns."""
    monkeypatch.setattr(hopper, "product", plain)
    mesh = jax.make_mesh((2,), ("x",), axis_types=(AxisType.Auto,))
    a, b = operands_of(DGRAD, 256, 256, 512)  # both with the summed dim last
    read = hopper.operands(codes.grid(a), codes.grid(b), *DGRAD)
    where = [NamedSharding(mesh, PartitionSpec(None, *spec)) for spec in specs]
    x, w = (jax.device_put(arg, at) for arg, at in zip(read[:2], where))
    run = jax.jit(hopper.partitioned).lower(x, w, *read[2:]).compile()
    text = run.as_text()
    assert text.count("all-reduce(") == sums
    assert "all-gather(" not in text
    np.testing.assert_array_equal(run(x, w, *read[2:]), plain(*read))
