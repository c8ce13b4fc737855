"""A schedule is the curve of the report: every part rules its number of updates, jitted or not."""

import math

import jax
import numpy as np
import optax
import pytest

from dsjax.config import load
from dsjax.config.schedule import (
    LearningRate,
    Piecewise,
    StepDecay,
    in_steps,
)
from dsjax.optim.schedule import (
    changed,
    describe,
    learning_rate,
    misfit,
    piecewise,
    step_decay,
)

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
        (lambda: StepDecay(1.0, 3, cuts=(0.9, 0.5)), "ascending"),
        (lambda: StepDecay(1.0, 3, cuts=(2.5,)), "cuts=2.5 is neither"),
        (lambda: LearningRate(warmup_steps=1.5), "warmup_steps=1.5 is neither .* share"),
        (lambda: LearningRate(warmup_steps=-0.1), "warmup_steps=-0.1 is negative"),
        (lambda: LearningRate(low_steps=1e30), "low_steps=1e.30 is more than any machine"),
        (lambda: LearningRate(last_steps=math.nan), "not a finite number"),
        (lambda: Piecewise((1.0,), (5,)), "one value more"),
    ],
)
def test_schedules_without_meaning_are_refused_in_a_sentence(make, words):
    with pytest.raises(ValueError, match=words):
        make()


SHARES = LearningRate(peak=2.0, low=0.5, last=0.25, warmup_steps=0.1, constant_steps=0.4,
                      cosine_steps=0.3, low_steps=0.1, last_steps=0.1)


@pytest.mark.parametrize(("name", "steps", "parts"), [
    ("tiny", 600, (30, 240, 290, 20, 20)), ("small", 2000, (100, 900, 900, 60, 40)),
])
def test_the_configs_shares_are_the_steps_they_had(name, steps, parts):
    run = load.load(name)
    assert run.train.steps == steps
    rates = {name: getattr(run.learning_rate, name) for name in ("peak", "low", "last")}
    counted = LearningRate(**rates, **dict(zip(
        ("warmup_steps", "constant_steps", "cosine_steps", "low_steps", "last_steps"), parts)))
    of_the_run = in_steps(run.learning_rate, steps)
    assert of_the_run == counted
    curves = [jax.jit(jax.vmap(lambda i, s=s: learning_rate(s, i)))(np.arange(steps + 9))
              for s in (of_the_run, counted)]
    np.testing.assert_array_equal(*curves)


@pytest.mark.parametrize("steps", [5, 24, 97, 200, 600, 1009])
def test_a_run_of_any_length_climbs_falls_and_ends_at_its_last_rate(steps):
    rate = load.load("tiny").learning_rate
    parts = in_steps(rate, steps)
    assert sum((parts.warmup_steps, parts.constant_steps, parts.cosine_steps, parts.low_steps,
                parts.last_steps)) == steps
    curve = _all(parts, steps)
    assert curve.max() == pytest.approx(3e-3)
    assert misfit(rate, steps) is None
    if steps >= 24:
        assert curve[-1] == pytest.approx(1e-4)


def test_shares_and_steps_may_stand_beside_each_other():
    mixed = LearningRate(2.0, warmup_steps=7, constant_steps=0.5, cosine_steps=0.25)
    assert in_steps(mixed, 100) == LearningRate(2.0, warmup_steps=7, constant_steps=50,
                                                cosine_steps=25)
    assert in_steps(in_steps(mixed, 100), 999) == in_steps(mixed, 100)
    cuts = in_steps(StepDecay(2.0, 0.01, cuts=(0.6, 0.9, 70)), 100)
    assert cuts == StepDecay(2.0, 1, cuts=(60, 70, 90))
    assert in_steps(StepDecay(2.0, 0, cuts=(0.6, 0.9)), 1).cuts == (1,)
    assert LearningRate(2.0, warmup_steps=30.0) == LearningRate(2.0, warmup_steps=30)
    assert type(LearningRate(2.0, warmup_steps=30.0).warmup_steps) is int


@pytest.mark.parametrize(("rate", "steps", "words"), [
    (FIVE, 9, ("21 steps", "run's 9", "1.93", "0.25", "share")),
    (FIVE, 100, ("21 steps", "run's 100", "0.25")),
    (FIVE, 2, ("2 of the 3", "climbs", "--learning-rate.warmup-steps")),
    (StepDecay(1.0, 2, cuts=(6, 50)), 50, ("step 50", "ends at 50", "0.6 0.9")),
])
def test_a_schedule_that_does_not_fit_the_run_is_told_of_with_the_remedy(rate, steps, words):
    said = misfit(rate, steps)
    for word in words:
        assert word in said


@pytest.mark.parametrize(("rate", "steps"), [
    (FIVE, 21), (FIVE, 23), (SHARES, 1), (SHARES, 50), (LearningRate(), 7),
    (LearningRate(1.0, warmup_steps=2, constant_steps=99), 9),
    (StepDecay(1.0, 0.1, cuts=(0.6, 0.9)), 50), (StepDecay(1.0, 3), 10),
])
def test_one_that_fits_or_never_falls_is_not(rate, steps):
    assert misfit(rate, steps) is None


def test_the_curve_is_told_in_the_steps_of_the_run():
    assert describe(SHARES, 50) == (
        "up to 2 over 5 steps, from step 25 down a cosine to 0.5 at 40, 0.25 from step 45")
    assert describe(LearningRate(peak=3e-4), 9) == "0.0003"
    assert "times 0.316 from step 30" in describe(StepDecay(1.0, 2, cuts=(0.6,)), 50)


def test_more_steps_stretch_shares_and_what_that_changes_is_told():
    assert changed((SHARES, 50), (SHARES, 50), 40) is None
    said = changed((SHARES, 50), (SHARES, 100), 45)
    assert "after step 45 at 2, where the run had 0.25" in said
    assert changed((FIVE, 21), (FIVE, 50), 20) is None  # steps stay where they are
