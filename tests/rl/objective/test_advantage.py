"""Advantages are relative to the group alone, sum to zero in it, and are zero in a constant one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsjax.rl.objective import advantage

REWARDS = np.array([1.0, 0.0, 3.0, 2.0, 1.0, 0.0, 5.0])
GROUPS = np.array([7, -3, 7, 7, -3, -3, 0], np.int32)  # unequal sizes, any ids, mixed order


@pytest.fixture(autouse=True)
def in_float64():
    with jax.enable_x64(True):
        yield


def test_by_hand():
    """Group 7 has 1, 3, 2: mean 2, squares 1 + 1 + 0, n - 1 = 2, deviation 1: -1, 1, 0.

    Group -3 has 0, 1, 0: mean 1/3, squares 1/9 + 4/9 + 1/9 = 2/3, over 2 is 1/3, deviation
    1/sqrt(3): -1/3 * sqrt(3) = -0.57735 twice, and 2/3 * sqrt(3) = 1.15470. Group 0 is one output.
    """
    third = 1 / np.sqrt(3)
    expected = [-1, -third, 1, 0, 2 * third, -third, 0]
    np.testing.assert_allclose(advantage.group_relative(REWARDS, GROUPS), expected, atol=1e-15)
    centered = [-1, -1 / 3, 1, 0, 2 / 3, -1 / 3, 0]
    np.testing.assert_allclose(advantage.group_centered(REWARDS, GROUPS), centered, atol=1e-15)


def test_by_hand_over_n_and_with_eps():
    """Of 1, 3, 2 over n: sqrt(2/3) = 0.8164966; with eps 0.5: -1 / 1.3164966 = -0.7595918."""
    found = advantage.group_relative(REWARDS, GROUPS, eps=0.5, ddof=0)
    np.testing.assert_allclose(found[jnp.array([0, 2, 3])], [-0.7595918, 0.7595918, 0], atol=1e-7)


def test_of_a_constant_group_they_are_exactly_zero_whatever_rounding_does():
    """Eight times 0.1 in float32 has a mean that is not 0.1."""
    rewards = jnp.asarray([0.1] * 8 + [0.1, 0.2], jnp.float32)
    groups = jnp.asarray([0] * 8 + [1] * 2)
    for found in (advantage.group_relative(rewards, groups, eps=1e-6),
                  advantage.group_relative(rewards, groups),
                  advantage.group_centered(rewards, groups)):
        assert found.dtype == jnp.float32
        assert (found[:8] == 0).all()
        assert (found[8:] != 0).all()
    assert advantage.constant_groups(rewards, groups).tolist() == [True] * 8 + [False] * 2


@given(st.lists(st.tuples(st.integers(0, 3), st.floats(-100, 100, width=16)), min_size=1,
                max_size=12), st.floats(-8, 8, width=16), st.sampled_from([0.5, 2.0, 8.0]))
@settings(max_examples=25, deadline=None, derandomize=True)
def test_they_sum_to_zero_and_ignore_shift_scale_order_and_other_groups(rows, shift, scale):
    with jax.enable_x64(True):
        groups, rewards = (np.array(column) for column in zip(*rows))
        pad = 12 - len(rows)  # one shape, so that nothing is compiled twice
        groups = np.concatenate([groups, np.full(pad, 9)]).astype(np.int32)
        rewards = np.concatenate([rewards, np.arange(pad)]).astype(np.float64)
        found = np.asarray(advantage.group_relative(rewards, groups))
        for group in set(groups.tolist()):
            of = groups == group
            assert abs(found[of].sum()) < 1e-9
            if rewards[of].max() > rewards[of].min():
                assert abs((found[of] ** 2).sum() - (of.sum() - 1)) < 1e-6
            else:
                assert (found[of] == 0).all()
        order = np.argsort(rewards, kind="stable")
        moved = advantage.group_relative(rewards[order], groups[order])
        np.testing.assert_allclose(moved, found[order], atol=1e-9)
        other = np.where(groups == groups[0], rewards, 3 * rewards + 1)
        kept = np.asarray(advantage.group_relative(other, groups))[groups == groups[0]]
        np.testing.assert_allclose(kept, found[groups == groups[0]], atol=1e-9)
        shifted = advantage.group_relative(rewards * scale + shift, groups)
        exact = all(rewards[groups == g].max() - rewards[groups == g].min() > 1e-3
                    or np.ptp(rewards[groups == g]) == 0 for g in set(groups.tolist()))
        if exact:
            np.testing.assert_allclose(shifted, found, atol=1e-7)
