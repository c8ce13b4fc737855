"""Evaluate a schedule at a step: plain functions of the data in `dsjax.config.schedule`.

DeepSeek-V3 report, sec. 4.2, and DeepSeek-V2 report, sec. 3.1.2. `step` counts the optimizer
steps already done: 0 for the first update, whose rate is the first of the climb (peak / warm-up
steps, not zero), so that a part of n steps rules exactly n updates. It may be a Python int or a
traced integer. Results are float32 scalars; counts are exact up to 2^24, then to 2^-24 of them.
"""

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from dsjax.config.schedule import LearningRate, Piecewise, StepDecay


def learning_rate(schedule: LearningRate | StepDecay, step: ArrayLike) -> Array:
    """Learning rate of the update that follows `step` updates; a float32 scalar."""
    if isinstance(schedule, StepDecay):
        return step_decay(schedule, step)
    return five_part(schedule, step)


def five_part(schedule: LearningRate, step: ArrayLike) -> Array:
    """Follow V3: linear warm-up, constant, cosine, constant, lower constant (sec. 4.2)."""
    s, now = schedule, jnp.asarray(step, jnp.float32) + 1
    high = s.warmup_steps + s.constant_steps
    rate = s.peak * _climb(now, s.warmup_steps)
    if s.cosine_steps or s.low_steps:
        done = jnp.clip((now - high) / max(s.cosine_steps, 1), 0, 1)
        cosine = s.low + (s.peak - s.low) * (1 + jnp.cos(jnp.pi * done)) / 2
        rate = jnp.where(now > high, cosine if s.cosine_steps else s.low, rate)
    if s.last_steps:
        rate = jnp.where(now > high + s.cosine_steps + s.low_steps, s.last, rate)
    return rate


def step_decay(schedule: StepDecay, step: ArrayLike) -> Array:
    """Follow V2: linear warm-up, then a cut to `factor` of the rate at each of `cuts`."""
    now = jnp.asarray(step, jnp.float32) + 1
    levels = tuple(schedule.factor**i for i in range(len(schedule.cuts) + 1))
    level = piecewise(Piecewise(levels, schedule.cuts), step)
    return schedule.peak * _climb(now, schedule.warmup_steps) * level


def piecewise(schedule: Piecewise, done: ArrayLike) -> Array:
    """Value once `done` steps or tokens are behind; a boundary belongs to the value after it.

    V3's gamma and lambda (sec. 4.2) are of this kind. Returns a float32 scalar.
    """
    values = jnp.asarray(schedule.values, jnp.float32)
    if not schedule.boundaries:
        return values[0]
    ends = jnp.asarray(schedule.boundaries, jnp.float32)
    return values[jnp.sum(jnp.asarray(done, jnp.float32) >= ends)]


def _climb(now: Array, warmup_steps: int) -> Array:
    """Share of the peak at update number `now`, counted from one."""
    return jnp.minimum(now / max(warmup_steps, 1), 1.0)
