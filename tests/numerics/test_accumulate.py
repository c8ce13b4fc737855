"""The simulated tensor core cuts off what the definition cuts off, bit for bit, and promotion every
128 of K takes most of the error away.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsjax.numerics import accumulate, scaled
from dsjax.numerics.formats import decode
from tests.reference import accumulate as reference

product = jax.jit(accumulate.product, static_argnums=(2, 3))


def numbers(seed, shape, spread=1.0):
    """E4M3 numbers of either sign whose sizes differ."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(shape) * np.exp(spread * rng.standard_normal(shape))
    return np.asarray(drawn(x.astype(np.float32)))


@jax.jit
def drawn(x):
    """Codes of a row's own scale, as numbers."""
    return decode(scaled.quantize(x, (1, scaled.WHOLE)).codes)


@pytest.mark.parametrize("promote", [None, 128, 64, 32])
@pytest.mark.parametrize("bits", [13, 7])
def test_every_bit_is_the_definition_s(promote, bits):
    a, b = numbers(0, (3, 300)), numbers(1, (300, 5))  # the last instruction is not full
    expected = reference.product(a, b, promote, bits)
    np.testing.assert_array_equal(product(a, b, promote, bits), expected)


def test_zeros_and_one_large_product_among_small_ones():
    a = np.zeros((1, 96), np.float32)
    a[0, :33] = [448.0, *(2.0**-9 for _ in range(32))]  # small ones are below the last place of one
    b = np.ones((96, 1), np.float32)
    expected = [[448.0 + 2.0**-9]]  # which is what the second instruction adds, to a new register
    np.testing.assert_array_equal(accumulate.product(a, b, promote=32), expected)
    np.testing.assert_array_equal(accumulate.product(a, b, promote=None), [[448.0]])
    np.testing.assert_array_equal(accumulate.product(-a, b, promote=None), [[-448.0]])
    np.testing.assert_array_equal(accumulate.product(0 * a, b), [[0.0]])


def test_truncation_goes_towards_zero():
    x = np.array([1 + 2.0**-13, 1 + 2.0**-14, -(1 + 2.0**-14), 0.0, 3 * 2.0**-40], np.float32)
    expected = [1 + 2.0**-13, 1.0, -1.0, 0.0, 3 * 2.0**-40]
    np.testing.assert_array_equal(accumulate.truncate(x), expected)


@pytest.mark.parametrize("promote", [None, 128])
def test_the_fast_form_cuts_the_exact_sum_of_each_instruction(promote):
    rng = np.random.default_rng(2)  # small integers: every sum is exact
    a, b = (rng.integers(-8, 9, shape).astype(np.float32) for shape in ((3, 256), (256, 4)))
    total, register = np.zeros((3, 4)), np.zeros((3, 4))
    for k in range(0, 256, 32):
        register = register + a[:, k : k + 32] @ b[k : k + 32]
        register = np.vectorize(lambda r: reference.cut(r, reference.last_place(r, 4)))(register)
        if promote and (k + 32) % promote == 0:
            total, register = total + register, 0 * register
    expected = total + register
    np.testing.assert_array_equal(accumulate.product_fast(a, b, promote, 4), expected)
    assert np.any(expected != a @ b)


def test_the_error_at_k_4096_is_near_two_percent_and_falls_with_promotion():
    # The largest of 32 x 32 errors over the mean size of an entry: V3 report sec. 3.3.2.
    a, b = numbers(4, (32, 4096), 0.0), numbers(5, (4096, 32), 0.0)
    error = jax.jit(accumulate.relative_error, static_argnums=2)
    errors = {n: float(error(a, b, n)[0]) for n in (None, 512, 128, 32)}
    assert 0.01 < errors[None] < 0.03
    assert errors[None] > 2 * errors[512] > 4 * errors[128]
    assert errors[128] < 0.003


@pytest.mark.parametrize("promote", [0, 16, 100, -128])
def test_promotion_inside_an_instruction_is_refused(promote):
    with pytest.raises(ValueError, match="multiple of 32"):
        accumulate.product(jnp.ones((1, 32)), jnp.ones((32, 1)), promote)


def test_sums_are_the_same_under_jit(key):
    a, b = numbers(6, (4, 160)), numbers(7, (160, 4))
    jitted = jax.jit(accumulate.product, static_argnums=2)(a, b, 128)
    np.testing.assert_array_equal(jitted, accumulate.product(a, b, 128))
