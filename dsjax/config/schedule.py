"""Schedules as data: numbers that change as training goes on, part by part.

DeepSeek-V3 report, sec. 4.2: the learning rate in five parts, the speed of the router bias (gamma)
and the weight of the MTP loss (lambda). DeepSeek-V2 report, sec. 3.1.2: warm-up and two cuts.
`dsjax.optim.schedule` evaluates them, also inside jit. The functions at the end scale a report's
schedule to a run of any length: its shares of the tokens, taken as shares of the steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from dsjax.config.fields import finite

V3_PARTS = (10.0e12, 4.3e12, 333e9, 167e9)
"""Tokens until the peak ends (warm-up included), then of cosine, low and last rate (sec. 4.2)."""
V3_BIAS_FROZEN_AT = 14.3e12
"""Tokens after which V3 leaves the router bias alone."""
V3_WARMUP_SHARE = 2000 / 242_800
"""2,000 steps of all. Their number is an estimate: a batch ramp linear in tokens is assumed."""


@dataclass(frozen=True)
class LearningRate:
    """V3's learning rate: up in a line to `peak`, hold, down half a cosine to `low`, hold, `last`.

    Lengths are in optimizer steps; a part of none is left out, and the last part's rate goes on.
    """

    peak: float = 2.2e-4
    """Rate after the warm-up; the default is V3's."""
    low: float = 0.0
    """Rate at which the cosine ends; V3 uses 2.2e-5."""
    last: float = 0.0
    """Rate of the last part; V3 uses 7.3e-6."""
    warmup_steps: int = 0
    """Steps of the linear climb from zero."""
    constant_steps: int = 0
    """Steps at the peak."""
    cosine_steps: int = 0
    """Steps of the cosine from `peak` to `low`."""
    low_steps: int = 0
    """Steps at `low`."""
    last_steps: int = 0
    """Steps at `last`."""

    def __post_init__(self) -> None:
        """Refuse rates below zero or out of order, and parts of negative length."""
        finite(self)
        _lengths(self, "warmup_steps", "constant_steps", "cosine_steps", "low_steps", "last_steps")
        if self.peak <= 0:
            raise ValueError(f"LearningRate.peak={self.peak} must be above 0; V3 uses 2.2e-4")
        for name in ("low", "last"):
            if not 0 <= getattr(self, name) <= self.peak:
                raise ValueError(
                    f"LearningRate.{name}={getattr(self, name)} must lie between 0 and "
                    f"peak={self.peak}; V3 ends at a tenth and at a thirtieth of the peak"
                )


@dataclass(frozen=True)
class StepDecay:
    """V2's learning rate: up in a line to `peak`, then multiplied by `factor` at each cut."""

    peak: float
    """Rate after the warm-up; V2 uses 2.4e-4, V2-Lite 4.2e-4."""
    warmup_steps: int = 2000
    """Steps of the linear climb from zero."""
    cuts: tuple[int, ...] = ()
    """Steps before which the rate is cut; V2 cuts at 60 % and 90 % of its tokens."""
    factor: float = 0.316
    """What a cut leaves of the rate."""

    def __post_init__(self) -> None:
        """Refuse rates that are not positive and cuts that are out of order."""
        finite(self)
        _lengths(self, "warmup_steps")
        _ascending("StepDecay.cuts", self.cuts)
        if self.peak <= 0 or not 0 < self.factor <= 1:
            raise ValueError(
                f"StepDecay.peak={self.peak} and factor={self.factor} must be above 0, the factor "
                "at most 1; V2 uses 2.4e-4 and 0.316"
            )


@dataclass(frozen=True)
class Piecewise:
    """A number that jumps: `values[i]` until `boundaries[i]` steps (or tokens) are done."""

    values: tuple[float, ...]
    """One more than the boundaries."""
    boundaries: tuple[int, ...] = ()
    """Ascending counts of steps or tokens; the unit is that of the number it is evaluated at."""

    def __post_init__(self) -> None:
        """Refuse values that do not fit the boundaries."""
        _ascending("Piecewise.boundaries", self.boundaries)
        if len(self.values) != len(self.boundaries) + 1:
            raise ValueError(
                f"Piecewise has values={self.values} for boundaries={self.boundaries}; "
                "give one value more than boundaries"
            )


def v3_like(steps: int, peak: float = 2.2e-4, warmup_steps: int | None = None) -> LearningRate:
    """V3's learning rate for a run of `steps`: parts and rates in the report's proportions.

    `warmup_steps` is V3's share of all steps when None, and is taken from the constant part.
    """
    ends = [0, *_ends(steps)]
    high, cosine, low, last = (after - before for before, after in pairwise(ends))
    if warmup_steps is None:
        warmup_steps = min(high, max(1, round(V3_WARMUP_SHARE * steps)))
    if warmup_steps > high:
        raise ValueError(
            f"warmup_steps={warmup_steps} exceeds the {high} of {steps} steps before the rate "
            f"falls; choose a warm-up of at most {high} or a longer run"
        )
    rates = {"peak": peak, "low": peak * 2.2e-5 / 2.2e-4, "last": peak * 7.3e-6 / 2.2e-4}
    return LearningRate(**rates, warmup_steps=warmup_steps, constant_steps=high - warmup_steps,
                        cosine_steps=cosine, low_steps=low, last_steps=last)  # fmt: skip


def v2_like(steps: int, peak: float = 2.4e-4, warmup_steps: int = 2000) -> StepDecay:
    """V2's learning rate for a run of `steps`: cuts to 0.316 at 60 % and at 90 %."""
    return StepDecay(peak, warmup_steps, cuts=(round(0.6 * steps), round(0.9 * steps)))


def v3_gamma(steps: int, speed: float = 0.001) -> Piecewise:
    """Speed of the router bias in a run of `steps`: V3 stops it for the last 500B of its tokens."""
    return Piecewise((speed, 0.0), (round(steps * V3_BIAS_FROZEN_AT / sum(V3_PARTS)),))


def v3_lambda(steps: int, weights: tuple[float, float] = (0.3, 0.1)) -> Piecewise:
    """Weight of the MTP loss in a run of `steps`: V3 lowers it when the learning rate falls."""
    return Piecewise(weights, (_ends(steps)[0],))


def _ends(steps: int) -> list[int]:
    """Where V3's parts end in a run of `steps`; the last end is `steps`."""
    if steps < 1:
        raise ValueError(f"steps={steps} leaves nothing to schedule; choose at least 1")
    return [round(steps * sum(V3_PARTS[: i + 1]) / sum(V3_PARTS)) for i in range(len(V3_PARTS))]


def _lengths(owner: object, *names: str) -> None:
    for name in names:
        if getattr(owner, name) < 0:
            raise ValueError(
                f"{type(owner).__name__}.{name}={getattr(owner, name)} is negative; "
                "choose 0 to leave the part out"
            )


def _ascending(name: str, counts: tuple[int, ...]) -> None:
    if any(after <= before for before, after in pairwise((0, *counts))):
        raise ValueError(f"{name}={counts} must be above 0 and ascending; reorder them")
