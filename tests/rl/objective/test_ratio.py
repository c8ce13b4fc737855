"""Ratios and the clipped surrogate are the equations, worked out by hand; gradients are exact."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsjax.rl.objective import ratio, weights
from tests.rl.objective.arrays import agrees_with_differences, batch

LN2 = np.log(2.0)
NEW = np.array([[LN2, 0.0, -LN2, np.nan], [0.0, 2 * LN2, np.inf, -np.inf]]) - 3
OLD = np.full((2, 4), -3.0)
MASK = np.array([[1, 1, 1, 0], [1, 1, 0, 0]], bool)


@pytest.fixture(autouse=True)
def in_float64():
    with jax.enable_x64(True):
        yield


def test_of_tokens_outputs_and_sequences_by_hand():
    """Ratios of tokens are 2, 1, 1/2 and 1, 4: products 1 and 4, geometric means 1 and 2."""
    tokens = ratio.token_ratio(NEW, OLD)
    np.testing.assert_allclose(tokens[0, :3], [2, 1, 0.5])
    np.testing.assert_allclose(tokens[1, :2], [1, 4])
    np.testing.assert_allclose(ratio.output_ratio(NEW, OLD, MASK), [[1], [4]])
    np.testing.assert_allclose(ratio.sequence_ratio(NEW, OLD, MASK), [[1], [2]])
    np.testing.assert_allclose(ratio.sequence_ratio(NEW, OLD, MASK & False), [[1], [1]])


def test_the_surrogate_by_hand():
    """Clip to [0.8, 1.3]. A = 1: 0.5 -> 0.5 (the lower), 1 -> 1, 2 -> 1.3.

    A = -1: 0.5 -> -0.8 (the clipped is lower), 1 -> -1, 2 -> -2 (unclipped is lower).
    """
    rho, up, down = np.array([[0.5, 1, 2]]), np.array([[1.0]]), np.array([[-1.0]])
    found = ratio.clipped_surrogate(rho, up, 0.2, 0.3)
    np.testing.assert_allclose(found, [[0.5, 1, 1.3]])
    np.testing.assert_allclose(ratio.clipped_surrogate(rho, down, 0.2, 0.3), [[-0.8, -1, -2]])
    assert ratio.is_clipped(rho, up, 0.2, 0.3).tolist() == [[False, False, True]]
    assert ratio.is_clipped(rho, down, 0.2, 0.3).tolist() == [[True, False, False]]


def test_the_clip_of_r1_cuts_from_above_alone():
    """Clip to [-9, 11]: of A = 2, 12 -> 22 and 10 -> 20; of A = -2 every ratio is itself."""
    rho = np.array([[1e-6, 10, 12]])
    up, down = np.array([[2.0]]), np.array([[-2.0]])
    clip = ratio.R1_CLIP
    np.testing.assert_allclose(ratio.clipped_surrogate(rho, up, clip, clip), [[2e-6, 20, 22]])
    np.testing.assert_allclose(ratio.clipped_surrogate(rho, down, clip, clip), -2 * rho)


def test_gradients_are_those_of_finite_differences_and_zero_where_clipped():
    new, old, advantages, mask = batch(1)

    def surrogate(level):
        def f(x):
            rho = {"token": lambda: ratio.token_ratio(x, old),
                   "output": lambda: ratio.output_ratio(x, old, mask),
                   "sequence": lambda: ratio.sequence_ratio(x, old, mask)}[level]()
            gain = ratio.clipped_surrogate(rho, advantages, 0.2, 0.3)
            return weights.total(gain, mask / 7) if level == "token" else gain.sum()
        return f

    for level in ("token", "output", "sequence"):
        gradient = agrees_with_differences(surrogate(level), new)
        assert (gradient[~mask] == 0).all()
    rho = ratio.token_ratio(new, old)
    clipped = ratio.is_clipped(rho, advantages, 0.2, 0.3) & mask
    gradient = jax.grad(surrogate("token"))(new)
    assert clipped.any()
    assert (~clipped & mask).any()
    assert (gradient[clipped] == 0).all()
    assert (gradient[~clipped & mask] != 0).all()


def test_the_sequence_ratio_by_token_has_the_value_and_the_gradient_of_the_whole():
    new, old, advantages, mask = batch(2)
    value = ratio.sequence_ratio(new, old, mask)
    by_token = ratio.sequence_ratio_by_token(new, value)
    np.testing.assert_allclose(by_token, np.broadcast_to(value, new.shape))
    share = weights.sequence_mean(mask)

    def whole(x):
        rho = ratio.sequence_ratio(x, old, mask)
        return ratio.clipped_surrogate(rho, advantages, 0.2, 0.3).mean()

    def tokens(x):
        rho = ratio.sequence_ratio_by_token(x, ratio.sequence_ratio(x, old, mask))
        return weights.total(ratio.clipped_surrogate(rho, advantages, 0.2, 0.3), share)

    np.testing.assert_allclose(tokens(new), whole(new), rtol=1e-13)
    np.testing.assert_allclose(jax.grad(tokens)(new), jax.grad(whole)(new), rtol=1e-12)


def test_at_the_old_policy_outputs_and_constant_length_have_one_gradient():
    """And it is the plain policy gradient, A of each token's log-probability over B."""
    _, old, advantages, mask = batch(3)

    def outputs(x):
        rho = ratio.output_ratio(x, old, mask)
        return ratio.clipped_surrogate(rho, advantages, 10, 10).mean()

    def tokens(x):
        gain = ratio.clipped_surrogate(ratio.token_ratio(x, old), advantages, 10, 10)
        return weights.total(gain, weights.constant_length(mask, 1))

    plain = np.where(mask, advantages, 0) / len(mask)
    np.testing.assert_allclose(jax.grad(outputs)(old), plain, rtol=1e-13)
    np.testing.assert_allclose(jax.grad(tokens)(old), plain, rtol=1e-13)


def test_masked_inf_and_nan_change_nothing():
    clean = np.where(MASK, NEW, -1.0)
    for f in (ratio.output_ratio, ratio.sequence_ratio):
        np.testing.assert_array_equal(f(NEW, OLD, MASK), f(clean, OLD, MASK))
        np.testing.assert_array_equal(f(OLD, NEW, MASK), f(OLD, clean, MASK))
        gradient = jax.grad(lambda x, f=f: f(x, OLD, MASK).sum())(jnp.asarray(NEW))
        np.testing.assert_array_equal(
            gradient, jax.grad(lambda x, f=f: f(x, OLD, MASK).sum())(jnp.asarray(clean)))
        assert (gradient[~MASK] == 0).all()
