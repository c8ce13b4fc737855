"""The three FP8 products are those of what the definition's codes stand for, each operand tiled as
the report says; they stay within the error that half a code's last place allows; what is not a
number, too large or too small has a defined result.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsjax.numerics import gemm, scaled
from dsjax.numerics.scaled import Scaled
from dsjax.ops.linear import linear
from tests.reference import quantize as reference

M, K, N = 137, 141, 131  # partial tiles at every edge
RECIPES = pytest.mark.parametrize("recipe", [gemm.V3, gemm.V3_1], ids=lambda r: r.name)
ROWS, COLUMNS, BLOCKS = (1, 128), (128, 1), (128, 128)


def draw(seed, *shape):
    """Numbers whose sizes differ by rows and columns, as outliers of tokens and channels do."""
    rng = np.random.default_rng(seed)
    size = np.exp(rng.standard_normal((shape[-2], 1)) + rng.standard_normal((1, shape[-1])))
    return (size * rng.standard_normal(shape)).astype(np.float32)


def quantized(x, tile, ue8m0, form="e4m3"):
    values, scales = reference.quantize(x, tile, ue8m0, form)
    return spread(scales, tile, x.shape) * values


def spread(scales, tile, shape):
    return np.repeat(np.repeat(scales, tile[0], 0), tile[1], 1)[: shape[0], : shape[1]]


def close(actual, a, b):
    """Equal to the float64 product but for the order of the float32 sum."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    allowed = a.shape[1] * 2.0**-24 * (abs(a) @ abs(b))
    assert np.all(np.abs(np.asarray(actual, np.float64) - a @ b) <= allowed)


@functools.partial(jax.jit, static_argnums=0)
def three(precision, x, w, dy):
    """y, dx and dw of `linear` and its gradient."""
    y, pull = jax.vjp(lambda x, w: linear(x, w, precision=precision), x, w)
    return y, *pull(dy)


@RECIPES
def test_each_product_reads_the_operands_that_the_report_names(recipe):
    x, w, dy = draw(0, M, K), draw(1, K, N), draw(2, M, N)
    y, dx, dw = three(gemm.precision(recipe), x, w, dy)
    ue8m0 = recipe.ue8m0
    kept, w_quantized = quantized(x, ROWS, ue8m0), quantized(w, BLOCKS, ue8m0)
    close(y, kept, w_quantized)
    close(dx, quantized(dy, ROWS, ue8m0), w_quantized.T)
    # x waits in 1x128 tiles, and is quantized in 128x1 tiles from those.
    close(dw, quantized(kept, COLUMNS, ue8m0).T, quantized(dy, COLUMNS, ue8m0))


@RECIPES
def test_the_input_after_attention_waits_in_12_bits_with_powers_of_two(recipe):
    x, w, dy = draw(3, M, K), draw(4, K, N), draw(5, M, N)
    precision = gemm.precision(recipe).o_proj
    y, dx, dw = three(precision, x, w, dy)
    kept = quantized(x, ROWS, True, "e5m6")
    w_quantized = quantized(w, BLOCKS, recipe.ue8m0)
    close(y, quantized(kept, ROWS, True), w_quantized)
    close(dx, quantized(dy, ROWS, True), w_quantized.T)
    close(dw, quantized(kept, COLUMNS, True).T, quantized(dy, COLUMNS, True))
    # Of 12-bit numbers 1 in 8 is the middle between two of 8 bits, and half of those came from the
    # other side of it: twice quantized is once quantized but for 1 in 16.
    assert np.mean(quantized(kept, COLUMNS, True) != quantized(x, COLUMNS, True)) < 1 / 16 + 0.01


@RECIPES
def test_errors_are_within_half_a_last_place_of_each_operand(recipe):
    x, w, dy = draw(6, M, K), draw(7, K, N), draw(8, M, N)
    ue8m0 = recipe.ue8m0

    def error(a, tile):
        """At most 2^-4 of a number, or half the smallest subnormal; 2^-18 is float32's share."""
        _, scales = reference.quantize(a, tile, ue8m0, "e4m3")
        size = spread(scales, tile, a.shape).astype(np.float64)
        return np.maximum(2.0**-4 * np.abs(a), 2.0**-10 * size) * (1 + 2.0**-18)

    def inside(actual, a, b, error_a, error_b):
        a, b = np.abs(a.astype(np.float64)), np.abs(b.astype(np.float64))
        exact_error = error_a @ b + a @ error_b + error_a @ error_b
        return np.abs(actual) <= exact_error + a.shape[1] * 2.0**-24 * (
            (a + error_a) @ (b + error_b))

    y, dx, dw = (np.asarray(a, np.float64) for a in three(gemm.precision(recipe), x, w, dy))
    x_, w_, dy_ = (a.astype(np.float64) for a in (x, w, dy))
    by_row, by_block = error(x, ROWS), error(w, BLOCKS)
    assert np.all(inside(y - x_ @ w_, x, w, by_row, by_block))
    assert np.all(inside(dx - dy_ @ w_.T, dy, w.T, error(dy, ROWS), by_block.T))
    kept = quantized(x, ROWS, ue8m0)
    twice = by_row + error(kept, COLUMNS)
    assert np.all(inside(dw - x_.T @ dy_, x.T, dy, twice.T, error(dy, COLUMNS)))
    # Rounding is unbiased: the whole gradient is far closer than any entry's bound.
    for actual, exact in ((y, x_ @ w_), (dx, dy_ @ w_.T), (dw, x_.T @ dy_)):
        assert np.linalg.norm(actual - exact) < 0.06 * np.linalg.norm(exact)


def test_experts_are_quantized_each_by_itself():
    x, w, dy = draw(9, 3, 40, K), draw(10, 3, K, 2 * 130), draw(11, 3, 40, 2 * 130)
    precision = gemm.FP8
    whole = precision.fprop(precision.quantize_for_fprop(x), precision.quantize_weight(w, 2))
    grad = precision.quantize_grad(jnp.asarray(dy))
    d_w = precision.wgrad(precision.quantize_for_wgrad(x), grad)
    for e in range(3):
        parts = [quantized(part, BLOCKS, True) for part in np.split(w[e], 2, axis=1)]
        close(whole[e], quantized(x[e], ROWS, True), np.concatenate(parts, 1))  # gate and up apart
        close(d_w[e], quantized(x[e], COLUMNS, True).T, quantized(dy[e], COLUMNS, True))


def test_the_backward_pass_keeps_codes_with_scales_and_no_other_activation():
    x, w = jnp.asarray(draw(12, M, 256)), jnp.asarray(draw(13, 256, N))

    def kept(precision):
        leaves = jax.tree.leaves(jax.vjp(lambda x: linear(x, w, precision=precision), x)[1])
        return {(a.shape, a.dtype.name) for a in leaves if M in a.shape}

    scales = ((M, 2), "float8_e8m0fnu")
    assert kept(gemm.FP8) == {((M, 256), "float8_e4m3fn"), scales}
    assert kept(gemm.FP8.o_proj) == {((M, 256), "float16"), scales}


@RECIPES
def test_a_broken_token_spoils_its_own_row_and_the_weight_s_gradient_only(recipe):
    w, dy = draw(14, 128, 128), draw(15, 130, 128)
    for broken in (np.nan, np.inf, -np.inf):
        x = draw(16, 130, 128)
        x[3, 5] = broken
        y, dx, dw = three(gemm.precision(recipe), x, w, dy)
        assert np.all(np.isnan(y[3]))
        assert np.all(np.isfinite(np.delete(y, 3, 0)))
        assert np.all(np.isfinite(dx))
        assert np.all(np.isnan(dw[5]))  # so the optimizer leaves the step out
        dy_broken = dy.copy()
        dy_broken[7, 9] = broken
        _, dx, dw = three(gemm.precision(recipe), draw(16, 130, 128), w, dy_broken)
        assert np.all(np.isnan(dx[7]))
        assert np.all(np.isfinite(np.delete(dx, 7, 0)))
        assert np.all(np.isnan(dw[:, 9]))


@RECIPES
@pytest.mark.parametrize("size", [
    0.0, 3e18, *(pytest.param(s, marks=pytest.mark.exhaustive) for s in (1e-30, 1e-12, 1e12))])
def test_zero_tiny_and_huge_operands_give_zero_or_the_right_size(recipe, size):
    x, w, dy = size * np.sign(draw(17, 64, 128)), draw(18, 128, 96), draw(19, 64, 96)
    y, _, dw = (np.asarray(a, np.float64) for a in three(gemm.precision(recipe), x, w, dy))
    exact = x.astype(np.float64) @ w, x.T.astype(np.float64) @ dy
    for actual, expected in zip((y, dw), exact):
        assert np.all(np.isfinite(actual))
        if size < 1e-6:  # far below the floor of a tile's scale: 1e-4 / 448 times 2^-9
            assert not np.any(actual)
        else:
            assert np.linalg.norm(actual - expected) < 0.06 * np.linalg.norm(expected)


def test_operands_read_back_as_they_were_quantized():
    x = jnp.asarray(draw(20, M, K))
    kept = gemm.FP8.quantize_input(x)
    assert isinstance(kept, Scaled)
    restored = gemm.FP8.restore(kept).astype(jnp.float32)
    np.testing.assert_array_equal(restored, scaled.dequantize(kept))
    np.testing.assert_array_equal(gemm.FP8.quantize_for_fprop(x), gemm.FP8.restore(kept))
