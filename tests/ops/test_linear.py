"""The three products of a Linear are those of their quantized operands, and the gradient belongs to
the float32 master.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsjax.numerics.precision import BF16, FP32, Weight
from dsjax.ops.linear import linear
from tests.agreement import FP64, close, pulled


def operands(seed, *shapes):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape) for shape in shapes]


def rounded(a):
    return np.asarray(jnp.asarray(a, jnp.bfloat16), np.float64)


@pytest.mark.parametrize(
    ("contract", "x_shape", "w_shape", "equation"),
    [
        (1, (3, 5, 7), (7, 2, 4), "bti,ihn->bthn"),
        (2, (3, 5, 2, 4), (2, 4, 7), "bthn,hni->bti"),
    ],
)
def test_products_and_gradients_are_einsums_in_float64(contract, x_shape, w_shape, equation):
    left, right = equation.split("->")[0].split(",")
    out = equation.split("->")[1]
    x, w = operands(0, x_shape, w_shape)
    with jax.enable_x64(True):
        cotangent = operands(1, np.einsum(equation, x, w).shape)[0]
        y, (dx, dw) = pulled(lambda x, w: linear(x, w, contract, precision=FP64), cotangent, x, w)
    close(y, np.einsum(equation, x, w))
    close(dx, np.einsum(f"{out},{right}->{left}", cotangent, w))
    close(dw, np.einsum(f"{left},{out}->{right}", x, cotangent))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_bfloat16_products_are_exact_products_of_rounded_operands(dtype):
    x, w, cotangent = operands(2, (6, 33), (33, 4), (6, 4))
    x, cotangent = jnp.asarray(x, dtype), jnp.asarray(cotangent, dtype)
    y, pull = jax.vjp(lambda x, w: linear(x, w, precision=BF16), x, jnp.asarray(w, jnp.float32))
    dx, dw = pull(cotangent)
    x_, w_, c_ = rounded(x), rounded(w), rounded(cotangent)
    assert (y.dtype, dx.dtype, dw.dtype) == (dtype, dtype, jnp.float32)
    # Products of bfloat16 are exact in float32; at most 33 additions round, each by 2^-24 of a
    # partial sum below sum |x w|; a bfloat16 result rounds once more, by 2^-8 of itself at most.
    for actual, expected, size in [
        (y, x_ @ w_, abs(x_) @ abs(w_)), (dx, c_ @ w_.T, abs(c_) @ abs(w_).T),
        (dw, x_.T @ c_, abs(x_).T @ abs(c_)),
    ]:
        last = 2**-8 * np.abs(expected) if actual.dtype == jnp.bfloat16 else 0
        error = np.abs(np.asarray(actual, np.float64) - expected)
        assert np.all(error <= 33 * 2**-24 * size + last)
    exact = np.asarray(x, np.float64) @ w
    assert np.abs(np.asarray(y, np.float64) - exact).max() > 1e-4  # float32 operands would not


@pytest.mark.parametrize("precision", [FP32, BF16])
def test_a_quantized_weight_gives_the_same_numbers_and_its_master_the_gradient(precision):
    x, w = (jnp.asarray(a, jnp.float32) for a in operands(3, (5, 2, 3), (2, 3, 4)))
    weight = Weight(w, precision.quantize_weight(w.reshape(6, 4)))

    def f(w):
        return linear(x, w, 2, precision=precision)

    y, pull = jax.vjp(f, w)
    y_quantized, pull_quantized = jax.vjp(f, weight)
    np.testing.assert_array_equal(y, y_quantized)
    np.testing.assert_array_equal(pull(y)[0], pull_quantized(y)[0].master)
    assert not np.any(np.asarray(pull_quantized(y)[0].quantized, np.float32))
