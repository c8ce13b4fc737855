"""A schedule is the curve of the report: every part rules its number of updates, jitted or not."""

import math

import jax
import numpy as np
import optax
import pytest

from dsjax.config.schedule import (
    LearningRate,
    Piecewise,
    StepDecay,
    v2_like,
    v3_gamma,
    v3_lambda,
    v3_like,
)
from dsjax.optim.schedule import five_part, learning_rate, piecewise, step_decay

FIVE = LearningRate(
    peak=2.0, low=0.5, last=0.25, warmup_steps=3, constant_steps=5, cosine_steps=7, low_steps=2,
    last_steps=4,
)  # fmt: skip


def _all(schedule, steps):
    return np.array([float(learning_rate(schedule, i)) for i in range(steps)])


def test_the_five_parts_are_those_that_the_report_describes():
    climb = [2 / 3, 4 / 3, 2]
    fall = [0.5 + 1.5 * (1 + math.cos(math.pi * i / 7)) / 2 for i in range(1, 8)]
    want = [*climb, *[2.0] * 5, *fall, *[0.5] * 2, *[0.25] * 6]
    np.testing.assert_allclose(_all(FIVE, 23), want, rtol=1e-6)


def test_the_five_parts_agree_with_optax_schedules_joined():
    parts = [
        optax.linear_schedule(0, 2.0, 3),
        optax.constant_schedule(2.0),
        optax.cosine_decay_schedule(2.0, 7, alpha=0.25),
        optax.constant_schedule(0.5),
        optax.constant_schedule(0.25),
    ]
    joined = optax.join_schedules(parts, [3, 8, 15, 18])  # optax: a boundary is in the next part
    want = [float(joined(i + 1)) for i in range(22)]
    np.testing.assert_allclose(_all(FIVE, 22), want, rtol=1e-6)


def test_a_traced_step_gives_the_bits_of_a_python_step():
    for schedule in (FIVE, StepDecay(1.0, 3, cuts=(5, 9))):
        traced = jax.jit(jax.vmap(lambda i, s=schedule: learning_rate(s, i)))(np.arange(22))
        np.testing.assert_allclose(traced, _all(schedule, 22), rtol=2.0**-22)  # cos may be fused
    gamma = Piecewise((0.3, 0.2, 0.1), (4, 9))
    traced = jax.jit(jax.vmap(lambda i: piecewise(gamma, i)))(np.arange(12))
    np.testing.assert_array_equal(traced, [float(piecewise(gamma, i)) for i in range(12)])


@pytest.mark.parametrize(
    ("lengths", "want"),
    [
        ({}, [2, 2, 2, 2]),
        ({"warmup_steps": 2}, [1, 2, 2, 2]),
        ({"cosine_steps": 2}, [1.25, 0.5, 0.5, 0.5]),
        ({"warmup_steps": 1, "low_steps": 1}, [2, 0.5, 0.5, 0.5]),
        ({"constant_steps": 2, "last_steps": 1}, [2, 2, 0.25, 0.25]),
    ],
)
def test_parts_of_no_steps_are_left_out_and_the_last_rate_goes_on(lengths, want):
    schedule = LearningRate(peak=2.0, low=0.5, last=0.25, **lengths)
    np.testing.assert_allclose(_all(schedule, 4), want, rtol=1e-6)


def test_the_step_decay_of_v2_climbs_then_is_cut_twice():
    rates = np.array([float(step_decay(StepDecay(2.0, 4, cuts=(6, 9)), i)) for i in range(11)])
    want = [0.5, 1, 1.5, 2, 2, 2, *[2 * 0.316] * 3, *[2 * 0.316**2] * 2]
    np.testing.assert_allclose(rates, want, rtol=1e-6)
    assert v2_like(1000).cuts == (600, 900)


def test_v3_at_its_own_length_has_the_rates_and_token_shares_of_the_report():
    steps = 148_000  # a step is then 100M tokens
    v3 = v3_like(steps)
    assert v3.warmup_steps + v3.constant_steps == 100_000
    assert (v3.cosine_steps, v3.low_steps, v3.last_steps) == (43_000, 3_330, 1_670)
    assert (v3.peak, v3.low, v3.last) == pytest.approx((2.2e-4, 2.2e-5, 7.3e-6))
    assert v3_gamma(steps) == Piecewise((0.001, 0.0), (143_000,))
    assert v3_lambda(steps) == Piecewise((0.3, 0.1), (100_000,))
    # Half way down the cosine the rate is the mean of its ends.
    assert float(five_part(v3, 100_000 + 21_500 - 1)) == pytest.approx(1.21e-4, rel=1e-5)


@pytest.mark.parametrize("steps", [1, 2, 7, 300, 1009])
def test_v3_scaled_to_any_run_fills_it_exactly(steps):
    v3 = v3_like(steps, peak=1e-3)
    parts = (v3.warmup_steps, v3.constant_steps, v3.cosine_steps, v3.low_steps, v3.last_steps)
    assert sum(parts) == steps
    assert v3.warmup_steps >= 1
    rates = _all(v3, steps)
    assert rates.max() == pytest.approx(1e-3)
    assert (np.diff(rates)[v3.warmup_steps :] <= 0).all()


def test_token_counts_beyond_32_bits_are_schedule_inputs_too():
    gamma = Piecewise((0.001, 0.0), (14_300_000_000_000,))
    assert float(piecewise(gamma, 14_200_000_000_000)) == pytest.approx(0.001)
    assert float(piecewise(gamma, 14_400_000_000_000)) == 0.0


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: LearningRate(peak=0.0), "peak=0.0 must be above 0"),
        (lambda: LearningRate(peak=1.0, low=2.0), "low=2.0 must lie between"),
        (lambda: LearningRate(peak=1.0, cosine_steps=-1), "cosine_steps=-1 is negative"),
        (lambda: StepDecay(1.0, 3, cuts=(9, 5)), "ascending"),
        (lambda: Piecewise((1.0,), (5,)), "one value more"),
        (lambda: v3_like(0), "steps=0"),
        (lambda: v3_like(10, warmup_steps=8), "warmup_steps=8 exceeds the 7 of 10"),
    ],
)
def test_schedules_without_meaning_are_refused_in_a_sentence(make, words):
    with pytest.raises(ValueError, match=words):
        make()
