"""A trainer that replays the sampling support sees the probabilities that the engine drew from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsjax.infer.sample import Sampling, probs, sampling_params
from dsjax.rl.objective import mismatch, support
from tests.rl.objective.arrays import agrees_with_differences

ROWS, V, TEMPERATURE = 40, 11, 0.7
LOGITS = 1.5 * np.random.default_rng(0).standard_normal((ROWS, V))


@pytest.fixture(autouse=True)
def in_float64():
    with jax.enable_x64(True):
        yield


def engine(top_p):
    """Supports and the engine's log-probabilities of the likeliest token, by its own function."""
    sampling = sampling_params([Sampling(temperature=TEMPERATURE, top_p=top_p)] * ROWS)
    ids = np.argmax(LOGITS, axis=-1).astype(np.int32)
    drawn = jnp.take_along_axis(probs(jnp.asarray(LOGITS), sampling), ids[:, None], -1)[:, 0]
    return support.support(jnp.asarray(LOGITS), sampling), ids, jnp.log(drawn)


def test_by_hand():
    """Of 0.5, 0.3, 0.2 the nucleus of 0.7 is the first two: 5/8 and 3/8; at temperature 1/2 the
    squares 0.25, 0.09 of them: 25/34.
    """
    logits = jnp.log(jnp.asarray([[0.5, 0.3, 0.2]]))
    kept = support.support(logits, sampling_params([Sampling(top_p=0.7)]))
    assert kept.tolist() == [[True, True, False]]
    ids = np.zeros(1, np.int32)
    found = [float(jnp.exp(support.logprobs_within(logits, kept, ids, t))[0]) for t in (1.0, 0.5)]
    np.testing.assert_allclose(found, [5 / 8, 25 / 34])


def test_replayed_log_probabilities_are_the_engines():
    kept, ids, drawn = engine(0.8)
    assert int(kept.sum()) < ROWS * V / 2
    found = support.logprobs_within(jnp.asarray(LOGITS), kept, ids, TEMPERATURE)
    np.testing.assert_allclose(found, drawn, rtol=0, atol=1e-6)  # the nucleus is cut in float32


def test_without_the_replay_the_mean_ratio_is_the_mass_that_was_kept():
    """The fault that this file is against: every ratio is below one, by the mass."""
    kept, ids, drawn = engine(0.8)
    soft = jax.nn.softmax(jnp.asarray(LOGITS) / TEMPERATURE)
    mass = jnp.where(kept, soft, 0).sum(axis=-1)
    plain = jnp.log(jnp.take_along_axis(soft, ids[:, None], -1)[:, 0])
    np.testing.assert_allclose(jnp.exp(plain - drawn), mass, rtol=1e-6)
    every = np.ones((ROWS, 1), bool)
    apart = mismatch.statistics(plain[:, None], drawn[:, None], every)
    assert apart.outside > 0.3
    replayed = support.logprobs_within(jnp.asarray(LOGITS), kept, ids, TEMPERATURE)
    assert mismatch.statistics(replayed[:, None], drawn[:, None], every).outside == 0


def test_gradients_stay_within_the_support():
    kept, ids, _ = engine(0.8)

    def f(x):
        return support.logprobs_within(x, kept[:3], ids[:3], TEMPERATURE).sum()

    gradient = agrees_with_differences(f, LOGITS[:3])
    assert (gradient[~np.asarray(kept[:3])] == 0).all()
    np.testing.assert_allclose(gradient.sum(axis=-1), 0, atol=1e-12)


def test_a_token_outside_its_support_has_no_probability():
    kept = jnp.asarray([[True, False]])
    found = support.logprobs_within(jnp.zeros((1, 2)), kept, np.ones(1, np.int32), 1.0)
    assert found.tolist() == [-np.inf]
