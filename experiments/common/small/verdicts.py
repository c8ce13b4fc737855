"""Verdicts by rule: differences of arms, seed by seed, and the interval that three seeds allow.

The interval of a mean of n paired differences is Student's at 95 %, two-sided: half its width is
t(n - 1) s / sqrt(n). A claim that one arm is lower is supported where the whole interval is below
0, contradicted where all of it is above, and inconclusive else.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

STUDENT = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306}
"""97.5 % points of Student's t by degrees of freedom."""

SUPPORTS, CONTRADICTS = "supports", "contradicts"
INCONCLUSIVE, SILENT = "inconclusive", "cannot speak"
WORDS = (SUPPORTS, CONTRADICTS, INCONCLUSIVE, SILENT)


@dataclass(frozen=True)
class Interval:
    """A mean of differences and half the width of its 95 % interval; endless for one seed."""

    mean: float
    half: float

    @property
    def low(self) -> float:
        """Lower end."""
        return self.mean - self.half

    @property
    def high(self) -> float:
        """Upper end."""
        return self.mean + self.half

    def __str__(self) -> str:
        """`-0.0123 +- 0.0040`, or the mean alone where there is no interval."""
        return f"{self.mean:+.4f}" + (f" +- {self.half:.4f}" if math.isfinite(self.half) else "")


def paired(mine: Sequence[float], base: Sequence[float]) -> Interval:
    """The interval of mine - base, seed by seed."""
    differences = [a - b for a, b in zip(mine, base, strict=True)]
    n = len(differences)
    if n < 2:
        return Interval(differences[0], math.inf)
    spread = statistics.stdev(differences)
    return Interval(statistics.fmean(differences), STUDENT[n - 1] * spread / math.sqrt(n))


def lower(found: Interval) -> str:
    """Verdict on `mine is lower than base`."""
    if found.high < 0:
        return SUPPORTS
    return CONTRADICTS if found.low > 0 else INCONCLUSIVE


def no_higher(found: Interval, margin: float) -> str:
    """Verdict on `mine is at most a margin above base`."""
    if found.high < margin:
        return SUPPORTS
    return CONTRADICTS if found.low > margin else INCONCLUSIVE


def all_of(words: Sequence[str]) -> str:
    """Verdict on a claim of several parts: contradicted by one, supported by all."""
    if CONTRADICTS in words:
        return CONTRADICTS
    return SUPPORTS if all(word == SUPPORTS for word in words) else INCONCLUSIVE
