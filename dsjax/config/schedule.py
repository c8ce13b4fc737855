"""Schedules as data: numbers that change as training goes on, part by part.

DeepSeek-V3 report, sec. 4.2: the learning rate in five parts, the speed of the router bias (gamma)
and the weight of the MTP loss (lambda). DeepSeek-V2 report, sec. 3.1.2: warm-up and two cuts.
`dsjax.optim.schedule` evaluates them, also inside jit.

A length is given in one of two ways. Below 1 it is a share of the run's steps, so that a shorter or
a longer run has the same curve; from 1 on it is a number of steps. `in_steps` makes shares steps.
The shares are of `train.steps` as it is now: a run that goes on with more of them goes on with the
curve of the longer run.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from dsjax.config.fields import counted, well_typed

PARTS = ("warmup_steps", "constant_steps", "cosine_steps", "low_steps", "last_steps")


@dataclass(frozen=True)
class LearningRate:
    """V3's learning rate: up in a line to `peak`, hold, down half a cosine to `low`, hold, `last`.

    Lengths are optimizer steps or, below 1, shares of the run; a part of none is left out, and the
    last part's rate goes on.
    """

    peak: float = 2.2e-4
    """Rate after the warm-up; the default is V3's."""
    low: float = 0.0
    """Rate at which the cosine ends; V3 uses 2.2e-5."""
    last: float = 0.0
    """Rate of the last part; V3 uses 7.3e-6."""
    warmup_steps: float = 0
    """Steps of the linear climb from zero; this and the next four, below 1: a share of the run."""
    constant_steps: float = 0
    """Steps at the peak, or their share of the run."""
    cosine_steps: float = 0
    """Steps of the cosine from `peak` to `low`, or their share of the run."""
    low_steps: float = 0
    """Steps at `low`, or their share of the run."""
    last_steps: float = 0
    """Steps at `last`, or their share of the run."""

    def __post_init__(self) -> None:
        """Refuse rates below zero or out of order, and parts of negative length."""
        well_typed(self)
        steps_or_share(self, *PARTS)
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
    warmup_steps: float = 2000
    """Steps of the linear climb from zero; below 1, their share of the run."""
    cuts: tuple[float, ...] = ()
    """Steps before which the rate is cut, or shares of the run; V2 cuts at 0.6 and 0.9."""
    factor: float = 0.316
    """Share of the rate that a cut leaves."""

    def __post_init__(self) -> None:
        """Refuse rates that are not positive and cuts that are out of order."""
        well_typed(self)
        steps_or_share(self, "warmup_steps", "cuts")
        for kind in ([c for c in self.cuts if c < 1], [c for c in self.cuts if c >= 1]):
            _ascending("StepDecay.cuts", kind)
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
        well_typed(self)
        _ascending("Piecewise.boundaries", self.boundaries)
        if len(self.values) != len(self.boundaries) + 1:
            raise ValueError(
                f"Piecewise has values={self.values} for boundaries={self.boundaries}; "
                "give one value more than boundaries"
            )


def whole_steps(length: float, steps: int) -> int:
    """A length in steps: a number of steps as it is, a share of a run of `steps` rounded."""
    return round(length * steps) if length < 1 else int(length)


def in_steps(rate: LearningRate | StepDecay, steps: int) -> LearningRate | StepDecay:
    """The schedule of a run of `steps`, every length in steps.

    Each part ends at the step nearest to where it would by its shares, so that shares that add up
    to 1 fill the run exactly.
    """
    if isinstance(rate, StepDecay):
        cuts = sorted(whole_steps(cut, steps) for cut in rate.cuts)
        return dataclasses.replace(
            rate, warmup_steps=whole_steps(rate.warmup_steps, steps),
            cuts=tuple(max(cut, 1 + i) for i, cut in enumerate(dict.fromkeys(cuts))))
    end, before, found = 0.0, 0, dict[str, Any]()
    for name in PARTS:
        length = getattr(rate, name)
        end += length * steps if length < 1 else length
        found[name], before = round(end) - before, round(end)
    return dataclasses.replace(rate, **found)


def shares(rate: LearningRate | StepDecay) -> bool:
    """Return True where a length of the schedule is a share of the run."""
    lengths = [rate.warmup_steps, *rate.cuts] if isinstance(rate, StepDecay) else [
        getattr(rate, name) for name in PARTS]
    return any(0 < length < 1 for length in lengths)


def steps_or_share(part: Any, *names: str) -> None:
    """Refuse, in a config's fields, what is neither a share nor a number of steps; make steps ints.

    Also in tuples of them.
    """
    for name in names:
        held = getattr(part, name)
        owner = type(part).__name__
        object.__setattr__(part, name, tuple(_length(owner, name, v) for v in held)
                           if isinstance(held, tuple) else _length(owner, name, held))


def _length(owner: str, name: str, value: float) -> float:
    if value < 0:
        raise ValueError(f"{owner}.{name}={value} is negative; choose 0 to leave the part out")
    counted(owner, 0, **{name: value})
    if value < 1:
        return value if value else 0
    if value != int(value):
        raise ValueError(f"{owner}.{name}={value} is neither a number of steps nor, below 1, a "
                         f"share of the run; use {round(value)} or a share such as 0.05")
    return int(value)


def _ascending(name: str, counts: Sequence[float]) -> None:
    if any(after <= before for before, after in pairwise((0, *counts))):
        raise ValueError(f"{name}={counts} must be above 0 and ascending; reorder them")
