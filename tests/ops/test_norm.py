"""RMSNorm is the report's, in float32 whatever comes in, and comes back in the dtype it came in."""

import jax
import jax.numpy as jnp
import numpy as np

from dsjax.ops.norm import rms_norm
from tests.agreement import close, gradients_close, pulled
from tests.reference import attention


def test_norm_and_its_gradient_agree_with_the_reference():
    rng = np.random.default_rng(0)
    x, gain = rng.standard_normal((3, 5, 7)) * 0.01, rng.standard_normal(7)
    cotangent = rng.standard_normal(x.shape)
    with jax.enable_x64(True):
        y, (dx, dgain) = pulled(lambda x, gain: rms_norm(x, gain, 1e-4), cotangent, x, gain)
    close(y, attention.rms_norm(x, gain, 1e-4))

    def f(p):
        return np.sum(attention.rms_norm(p["x"], p["gain"], 1e-4) * cotangent)

    gradients_close({"x": dx, "gain": dgain}, f, {"x": x, "gain": gain})


def test_bfloat16_input_is_normalized_in_float32_and_rounded_once():
    rng = np.random.default_rng(1)
    x = jnp.asarray(rng.standard_normal((4, 96)), jnp.bfloat16)
    gain = jnp.asarray(1 + rng.standard_normal(96) / 5, jnp.float32)
    y = rms_norm(x, gain, 1e-6)
    exact = attention.rms_norm(np.asarray(x, np.float64), np.asarray(gain, np.float64), 1e-6)
    assert y.dtype == jnp.bfloat16
    # One rounding to 8 significand bits is at most half an ulp: 2^-9 of the value (ulp <= 2^-7 x).
    np.testing.assert_allclose(np.asarray(y, np.float64), exact, rtol=2**-8 * 1.001)


def test_norm_does_not_see_the_scale_of_its_input():
    x = jnp.asarray(np.random.default_rng(2).standard_normal((2, 9)), jnp.float32)
    one = rms_norm(x, jnp.ones(9), 0.0)
    np.testing.assert_array_equal(one, rms_norm(64.0 * x, jnp.ones(9), 0.0))  # 2^6 is exact
    np.testing.assert_allclose(np.square(one).mean(-1), 1.0, rtol=1e-6)
