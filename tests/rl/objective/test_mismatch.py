"""Engine and trainer are compared by hand-worked numbers; corrections cut from above alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsjax.rl.objective import mismatch

LN2 = np.log(2.0)
MASK = np.array([[1, 1, 1, 0], [1, 1, 0, 0]], bool)
ENGINE = np.array([[-1.0, -2, -3, np.nan], [-1, -1, np.inf, -np.inf]])
TRAINER = ENGINE + np.array([[0, LN2, -2 * LN2, 1], [2 * LN2, LN2, 1, 1]])


@pytest.fixture(autouse=True)
def in_float64():
    with jax.enable_x64(True):
        yield


def test_truncated_weights_by_hand():
    """Ratios of tokens 1, 2, 1/4 and 4, 2; of outputs 1/2 and 8; cut at 2 and at 3."""
    tokens = mismatch.token_weights(jnp.asarray(TRAINER), jnp.asarray(ENGINE), 3.0)
    np.testing.assert_allclose(tokens[0, :3], [1, 2, 0.25])
    np.testing.assert_allclose(tokens[1, :2], [3, 2])
    np.testing.assert_allclose(mismatch.sequence_weights(TRAINER, ENGINE, MASK, 2.0), [[0.5], [2]])


def test_truncated_weights_have_no_gradient_and_do_not_overflow():
    far = jnp.full((1, 4), 3e4)
    for f in (lambda x: mismatch.token_weights(x, -far, 2.0),
              lambda x: mismatch.sequence_weights(x, -far, MASK[:1], 2.0)):
        assert (f(far) == 2).all()
        within = -far - 0.1
        assert (f(within) < 1).all()
        assert (jax.grad(lambda x, f=f: f(x).sum())(within) == 0).all()


def test_off_policy_outputs_are_dropped_if_their_advantage_is_negative():
    """Means of log(pi_engine / pi): -(ln 2 - 2 ln 2)/3 = +0.2310 and -(3 ln 2)/2 = -1.0397."""
    down, up = np.array([-1.0, -1.0]), np.array([1.0, 0.0])

    def kept(advantages, threshold):
        return mismatch.is_on_policy(TRAINER, ENGINE, advantages, MASK, threshold).tolist()

    assert kept(down, 0.2310) == [False, True]
    assert kept(down, 0.2311) == [True, True]
    assert kept(down, -1.04) == [False, False]
    assert kept(up, -1.04) == [True, True]


def test_statistics_by_hand():
    """Log-ratios 0, ln 2, -2 ln 2, 2 ln 2, ln 2: mean 2 ln 2 / 5, so kl = -0.2772589.

    k3 = sum(ratio - 1) / 5 - mean = (0 + 1 - 0.75 + 3 + 1) / 5 - 0.2772589 = 0.5727411. Ratios in
    order 1/4, 1, 2, 2, 4: quantiles 0, 1/8, 1/2, 1 are 1/4, 0.625, 2, 4. Outside: all but one.
    """
    found = mismatch.statistics(TRAINER, ENGINE, MASK, (0.0, 0.125, 0.5, 1.0))
    np.testing.assert_allclose(found.kl, -0.2772589, atol=1e-7)
    np.testing.assert_allclose(found.k3, 0.5727411, atol=1e-7)
    np.testing.assert_allclose(found.quantiles, [0.25, 0.625, 2, 4])
    np.testing.assert_allclose(found.outside, 0.8)


def test_statistics_of_equal_sides_and_of_a_token_without_a_number():
    same = mismatch.statistics(ENGINE, ENGINE, MASK)
    assert (same.kl, same.k3, same.outside) == (0, 0, 0)
    assert (same.quantiles == 1).all()
    broken = TRAINER.copy()
    broken[0, 1] = np.nan
    for values in jax.tree.leaves(mismatch.statistics(broken, ENGINE, MASK)):
        assert np.isnan(values).all()


def test_the_share_outside_takes_a_tenth_either_way():
    ratio = np.array([[0.89, 0.91, 1.09, 1.11]])
    found = mismatch.statistics(np.log(ratio), np.zeros((1, 4)), np.ones((1, 4), bool))
    assert found.outside == 0.5
