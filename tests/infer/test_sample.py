"""A token is drawn from exactly the distribution that its row asks for, whatever others ask."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import chi2

from dsjax.errors import UserError
from dsjax.infer.sample import Sampling, cut, draw, probs, sample, sampling_params


def smallest_set(shares, top_p):
    """Smallest set with mass >= top_p by trying all sets; of equal size, the heaviest."""
    ids = range(len(shares))
    for size in range(1, len(shares) + 1):
        best = max(itertools.combinations(ids, size), key=lambda s: sum(shares[i] for i in s))
        if sum(shares[i] for i in best) >= top_p:
            return set(best)
    return set(ids)


nucleus = jax.jit(cut)


def asked(*rows):
    return sampling_params(rows)


@pytest.mark.parametrize("top_p", [0.01, 0.35, 0.6, 0.9, 0.99])
def test_the_nucleus_is_the_smallest_set_that_reaches_the_mass(top_p):
    shares = np.random.default_rng(3).dirichlet(np.full(7, 0.6), size=(4, 5)).astype(np.float32)
    kept = np.asarray(nucleus(shares, top_p, 7, 0.0))
    for got, row in zip(kept.reshape(-1, 7), shares.reshape(-1, 7)):
        expected = smallest_set(row.astype(np.float64), top_p)
        assert set(np.flatnonzero(got)) == expected
        mass = sum(row[i] for i in expected)
        # A sum of 7 numbers and a division in float32.
        np.testing.assert_allclose(got, np.where(got > 0, row / mass, 0), rtol=8 * 2.0**-23)


@pytest.mark.parametrize(
    ("top_p", "expected"),
    [(0.5, [1, 0, 0, 0]), (0.51, [2, 1, 0, 0]), (0.75, [2, 1, 0, 0]), (0.76, [4, 2, 1, 1])],
)
def test_the_crossing_token_is_kept_and_equals_go_by_lowest_id(top_p, expected):
    # Halves and quarters are exact in float32, so the boundary itself is tested.
    kept = nucleus(np.array([0.5, 0.25, 0.125, 0.125], np.float32), top_p, 4, 0.0)
    expected = np.array(expected if top_p < 0.76 else [4, 2, 1, 0], np.float32)
    np.testing.assert_allclose(kept, expected / expected.sum(), rtol=2.0**-22)


def test_temperature_divides_logits_and_zero_is_the_lowest_best_id():
    logits = jnp.asarray([[1.0, 3.0, 3.0, -2.0]])
    greedy = asked(Sampling(temperature=0, top_p=0.3))
    np.testing.assert_array_equal(probs(logits, greedy), [[0, 1, 0, 0]])
    np.testing.assert_allclose(probs(logits, asked(Sampling(2.0))), jax.nn.softmax(logits / 2),
                               rtol=1e-6)
    cut = probs(logits, asked(Sampling(vocab=2)))
    np.testing.assert_allclose(cut[0, :2], jax.nn.softmax(logits[0, :2]), rtol=1e-6)
    np.testing.assert_array_equal(cut[0, 2:], 0)
    keys = jax.random.split(jax.random.key(0), 1)
    assert sample(keys, probs(logits, greedy), greedy).tolist() == [1]


def test_rows_that_ask_for_different_things_get_what_each_gets_among_its_like():
    rows = [Sampling(0.0), Sampling(1.7), Sampling(0.3, top_p=0.8), Sampling(1e39, vocab=7),
            Sampling(0.0, vocab=5), Sampling(1.0, top_p=0.5, vocab=3)]
    logits = jnp.asarray(np.random.default_rng(0).normal(0, 3, (6, 11)), jnp.float32)
    keys = jax.random.split(jax.random.key(1), 6)

    @jax.jit
    def run(sampling):
        made = probs(logits, sampling)
        return made, sample(keys, made, sampling)

    together, tokens = run(asked(*rows))
    for i, row in enumerate(rows):
        alike, chosen = run(asked(*[row] * 6))
        np.testing.assert_array_equal(together[i], alike[i])
        assert tokens[i] == chosen[i]


def test_tokens_come_as_often_as_their_probability_says_and_never_at_zero():
    shares = jnp.asarray([0.5, 0.0, 0.3, 0.15, 0.05])
    draws = 40_000
    seen = np.bincount(draw(jax.random.key(5), jnp.tile(shares[None], (draws, 1))), minlength=5)
    expected = np.asarray(shares) * draws
    assert seen[1] == 0
    live = expected > 0
    statistic = (((seen - expected) ** 2)[live] / expected[live]).sum()
    assert statistic < chi2.ppf(1 - 1e-4, 3)  # a right sampler passes for all but 1 in 10^4 seeds


@pytest.mark.parametrize(
    ("field", "value"), [("temperature", -0.1), ("top_p", 0.0), ("top_p", 1.5),
                         ("max_new_tokens", 0), ("vocab", 0)],
)
def test_impossible_choices_are_refused_by_name(field, value):
    with pytest.raises(UserError, match=f"{field}={value}"):
        Sampling(**{field: value})
