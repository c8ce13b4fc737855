"""Estimates of the KL are the equations; V3.2's has the KL's own gradient and k3 has not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsjax.rl.objective import kl
from tests.rl.objective.arrays import agrees_with_differences, batch


@pytest.fixture(autouse=True)
def in_float64():
    with jax.enable_x64(True):
        yield


def test_by_hand():
    """pi_ref/pi of 2: 2 - ln 2 - 1 = 0.3068528; of 1/2: 1/2 + ln 2 - 1 = 0.1931472; of 1: 0.

    With pi/pi_old of 3: 0.9205584, 0.5794415 and 0.
    """
    now = np.log([[0.25, 0.5, 0.3]])
    reference = np.log([[0.5, 0.25, 0.3]])
    np.testing.assert_allclose(kl.k3(now, reference), [[0.3068528, 0.1931472, 0]], atol=1e-7)
    found = kl.unbiased(now, reference, now - np.log(3))
    np.testing.assert_allclose(found, [[0.9205584, 0.5794415, 0]], atol=1e-7)


def test_k3_of_near_policies_is_half_a_square_and_never_negative():
    """In float32, where exp(d) - d - 1 is rounding alone (steps of 1.2e-7 at one).

    d = 1e-3 is 5.001667e-7; expm1 is good to two steps of 1.2e-10 there.
    """
    near = jnp.asarray([1e-3, -1e-3, 1e-5], jnp.float32)
    found = np.asarray(kl.k3(jnp.zeros(3, jnp.float32), near), np.float64)
    np.testing.assert_allclose(found[:2], [5.001667e-7, 4.998333e-7], rtol=0, atol=2.4e-10)
    assert (found >= 0).all()


def test_gradients_are_those_of_finite_differences_and_of_their_formulas():
    """k3: 1 - pi_ref/pi. Unbiased: pi/pi_old * log(pi/pi_ref)."""
    now, reference, _, _ = batch(4)
    old = batch(5)[1]
    found = agrees_with_differences(lambda x: kl.k3(x, reference).sum(), now, rtol=1e-6)
    np.testing.assert_allclose(found, 1 - np.exp(reference - now), rtol=1e-12)
    found = agrees_with_differences(lambda x: kl.unbiased(x, reference, old).sum(), now, rtol=1e-5)
    np.testing.assert_allclose(found, np.exp(now - old) * (now - reference), rtol=1e-11)


def test_the_unbiased_estimate_has_the_gradient_of_the_kl_off_policy_too():
    """Over all tokens of three policies, each weighed by the one that sampled.

    d/dz sum_v pi(v) log(pi(v)/ref(v)) is what the estimate's gradient is on average; k3's is not.
    """
    z, old, reference = (np.random.default_rng(6).standard_normal((3, 5)))
    old, reference = jax.nn.log_softmax(old), jax.nn.log_softmax(reference)

    def exact(z):
        now = jax.nn.log_softmax(z)
        return (jnp.exp(now) * (now - reference)).sum()

    def mean_unbiased(z):
        return (jnp.exp(old) * kl.unbiased(jax.nn.log_softmax(z), reference, old)).sum()

    def mean_k3(z):
        return (jnp.exp(old) * kl.k3(jax.nn.log_softmax(z), reference)).sum()

    np.testing.assert_allclose(mean_unbiased(z), exact(z), rtol=1e-12)
    np.testing.assert_allclose(jax.grad(mean_unbiased)(z), jax.grad(exact)(z), rtol=1e-11)
    assert np.abs(jax.grad(mean_k3)(z) - jax.grad(exact)(z)).max() > 0.05
