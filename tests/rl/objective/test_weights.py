"""Weights of tokens are the three normalizers, and what is left out is in no denominator."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsjax.rl.objective import weights

MASK = np.array([[1, 1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0], [1, 1, 0, 0]], bool)
VALUES = np.array([[3.0, 5, 9, 9], [1, 2, 3, 6], [9, 9, 9, 9], [-1, -3, 9, 9]])


@pytest.fixture(autouse=True)
def in_float64():
    with jax.enable_x64(True):
        yield


def test_by_hand():
    """Sums of outputs are 8, 12 and -4 over 2, 4 and 2 tokens; the third has none.

    Token mean 16 / 8 = 2. Sequence mean (4 + 3 - 2) / 3 = 5/3. Of length 10: 16 / 30.
    """
    for made, expected in ((weights.token_mean(MASK), 2), (weights.sequence_mean(MASK), 5 / 3),
                           (weights.constant_length(MASK, 10), 16 / 30)):
        np.testing.assert_allclose(weights.total(VALUES, made), expected, rtol=1e-15)
        assert (made[~MASK] == 0).all()


def test_truncated_outputs_and_constant_groups_are_in_no_denominator():
    """Without outputs 1 (truncated) and 3 (constant) only the first is left: 8 over 2 tokens."""
    cut, same = np.array([0, 1, 0, 0], bool), np.array([0, 0, 0, 1], bool)
    mask = weights.counted(MASK, cut, same)
    assert mask.tolist() == [[True, True, False, False]] + [[False] * 4] * 3
    np.testing.assert_allclose(weights.total(VALUES, weights.token_mean(mask)), 4)
    np.testing.assert_allclose(weights.total(VALUES, weights.sequence_mean(mask)), 4)
    np.testing.assert_allclose(weights.total(VALUES, weights.constant_length(mask, 10)), 0.8)


@pytest.mark.parametrize("made", [weights.token_mean, weights.sequence_mean,
                                  lambda mask: weights.constant_length(mask, 4)])
def test_where_nothing_counts_the_loss_is_zero_and_not_nan(made):
    assert (made(np.zeros((2, 3), bool)) == 0).all()


def test_weights_of_zero_silence_inf_and_nan():
    values = jnp.asarray(np.where(MASK, VALUES, [np.nan, 1, np.inf, -np.inf]))
    made = weights.token_mean(MASK)
    np.testing.assert_allclose(weights.total(values, made), 2)
    gradient = jax.grad(weights.total)(values, made)
    np.testing.assert_array_equal(gradient, made)


@given(st.lists(st.integers(0, 6), min_size=4, max_size=4).filter(any), st.integers(1, 9))
@settings(max_examples=30, deadline=None, derandomize=True)
def test_means_sum_to_one_and_alike_lengths_make_all_three_one(lengths, cap):
    with jax.enable_x64(True):
        mask = np.arange(6)[None] < np.array(lengths)[:, None]
        assert abs(weights.token_mean(mask).sum() - 1) < 1e-12
        share = np.asarray(weights.sequence_mean(mask))
        assert abs(share.sum() - 1) < 1e-12
        rows = share.sum(axis=1)[mask.any(axis=1)]
        np.testing.assert_allclose(rows, 1 / mask.any(axis=1).sum())
        constant = np.asarray(weights.constant_length(mask, cap))
        np.testing.assert_allclose(constant.sum() * cap * mask.any(axis=1).sum(), mask.sum())
        even = np.arange(6)[None] < np.where(np.array(lengths) > 0, lengths[0] or 3, 0)[:, None]
        if even.any():
            np.testing.assert_allclose(weights.token_mean(even), weights.sequence_mean(even))
            length = int(even.sum(axis=1).max())
            np.testing.assert_allclose(weights.constant_length(even, length),
                                       weights.token_mean(even))
