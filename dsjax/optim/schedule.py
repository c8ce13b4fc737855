"""Evaluate a schedule at a step: plain functions of the data in `dsjax.config.schedule`.

DeepSeek-V3 report, sec. 4.2, and DeepSeek-V2 report, sec. 3.1.2. `step` counts the optimizer
steps already done: 0 for the first update, whose rate is the first of the climb (peak / warm-up
steps, not zero), so that a part of n steps rules exactly n updates. It may be a Python int or a
traced integer. Results are float32 scalars; counts are exact up to 2^24, then to 2^-24 of them.
"""

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from dsjax.config.schedule import LearningRate, Piecewise, StepDecay, in_steps, shares

EARLY = 0.9
"""Share of a run before which its schedule should not have ended."""


def learning_rate(schedule: LearningRate | StepDecay, step: ArrayLike) -> Array:
    """Learning rate of the update that follows `step` updates; a float32 scalar."""
    if isinstance(schedule, StepDecay):
        return step_decay(schedule, step)
    return five_part(schedule, step)


def five_part(schedule: LearningRate, step: ArrayLike) -> Array:
    """Follow V3: linear warm-up, constant, cosine, constant, lower constant (sec. 4.2)."""
    assert not shares(schedule), "in_steps makes shares of a run steps"
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
    assert not shares(schedule), "in_steps makes shares of a run steps"
    now = jnp.asarray(step, jnp.float32) + 1
    levels = tuple(schedule.factor**i for i in range(len(schedule.cuts) + 1))
    level = piecewise(Piecewise(levels, tuple(map(int, schedule.cuts))), step)
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


def describe(schedule: LearningRate | StepDecay, steps: int) -> str:
    """Describe the curve of a run of `steps` in words, for its header."""
    s = in_steps(schedule, steps)
    said = [f"up to {s.peak:.3g} over {s.warmup_steps} steps" if s.warmup_steps
            else f"{s.peak:.3g}"]
    if isinstance(s, StepDecay):
        said += [f"times {s.factor:.3g} from step {cut}" for cut in s.cuts]
        return ", ".join(said)
    high = s.warmup_steps + s.constant_steps
    if s.cosine_steps:
        said.append(f"from step {high} down a cosine to {s.low:.3g} at {high + s.cosine_steps}")
    elif s.low_steps:
        said.append(f"{s.low:.3g} from step {high}")
    if s.last_steps:
        said.append(f"{s.last:.3g} from step {high + s.cosine_steps + s.low_steps}")
    return ", ".join(said)


def misfit(schedule: LearningRate | StepDecay, steps: int) -> str | None:
    """Say why a schedule does not fit a run of `steps`, with the remedy; None when it fits.

    A schedule that never falls has no end to miss.
    """
    s = in_steps(schedule, steps)
    if s.warmup_steps > steps:
        return (f"the run ends after {steps} of the {s.warmup_steps} steps in which the rate climbs"
                "; lower --learning-rate.warmup-steps (0.05 is a twentieth of the run)")
    remedy = ("give its lengths as shares of the run (--learning-rate.cosine-steps 0.5 is half of "
              "it)")
    if isinstance(s, StepDecay):
        missed = next((cut for cut in s.cuts if cut >= steps), None)
        return None if missed is None else (
            f"the rate is cut at step {missed}, and the run ends at {steps}; give "
            "--learning-rate.cuts as shares of the run (0.6 0.9)")
    if not (s.cosine_steps or s.low_steps or s.last_steps):
        return None
    end = s.warmup_steps + s.constant_steps + s.cosine_steps + s.low_steps + s.last_steps
    reached, last = (f"{float(five_part(s, at - 1)):.3g}" for at in (steps, end))
    if end > steps and reached != last:
        return (f"the rate's {end} steps are more than the run's {steps}: it ends at {reached} "
                f"and never falls to {last}; {remedy}")
    if end < EARLY * steps:
        return (f"the rate's {end} steps are fewer than the run's {steps}: it stays at {last} from "
                f"there on; {remedy}")
    return None


def changed(before: tuple[LearningRate | StepDecay, int], now: tuple[LearningRate | StepDecay, int],
            step: int) -> str | None:
    """Say what changes for a run that goes on after `step` with another schedule; None if its rates
    to come are the same. Each schedule comes with the steps of its run, of which it has its shares.
    """
    (old, old_steps), (new, new_steps) = before, now
    old, new = in_steps(old, old_steps), in_steps(new, new_steps)
    if old == new:
        return None
    was, comes = (float(learning_rate(s, step)) for s in (old, new))
    return (f"the rate goes on after step {step} at {comes:.3g}, where the run had {was:.3g} next; "
            f"now it is {describe(new, new_steps)}")


def _climb(now: Array, warmup_steps: float) -> Array:
    """Share of the peak at update number `now`, counted from one."""
    return jnp.minimum(now / max(warmup_steps, 1), 1.0)
