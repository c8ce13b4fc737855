"""Estimates over samples and questions, with their standard errors.

pass@k: Chen et al. 2021, eq. 1, in the stable form of its figure 3. cons@k: R1 report sec. 3.1
(cons@64), the answer that most of k samples give. Standard errors: lm-evaluation-harness 0.4.13,
lm_eval/api/metrics.py (`mean_stderr`, `pooled_sample_stderr`).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from dsjax.errors import UserError


def pass_at_k(samples: int, passed: int, k: int) -> float:
    """Return the chance that one of k samples passes, without bias.

    1 - C(n - c, k) / C(n, k) = 1 - prod_{i = n-c+1}^{n} (1 - k / i)

    Raises:
        UserError: fewer samples than k.
    """
    if not 0 < k <= samples or not 0 <= passed <= samples:
        raise UserError(f"pass@{k} of {samples} samples, {passed} of them passed, is no number; "
                        "ask for at least k samples a question (--samples)")
    if samples - passed < k:
        return 1.0
    return 1.0 - math.prod(1.0 - k / i for i in range(samples - passed + 1, samples + 1))


def majority(answers: Sequence[str]) -> str:
    """Return the answer that is given most; of equally many, the one that was given first.

    An empty one is no answer, and counts only where there is no other.
    """
    return Counter([one for one in answers if one] or answers).most_common(1)[0][0]


def cons_at_k(answers: Sequence[str], verdicts: Sequence[bool]) -> bool:
    """Return the verdict on the majority's answer, as its first giver got it.

    answers: in a form in which equal answers are equal texts.
    """
    return verdicts[answers.index(majority(answers))]


def mean(values: Sequence[float]) -> float:
    """Return the mean; NaN of nothing."""
    return math.fsum(values) / len(values) if values else math.nan


def standard_error(values: Sequence[float]) -> float:
    """Return s / sqrt(n) with s^2 = sum (x - mean)^2 / (n - 1); NaN of fewer than two values."""
    if len(values) < 2:
        return math.nan
    center = mean(values)
    squares = math.fsum((value - center) ** 2 for value in values)
    return math.sqrt(squares / (len(values) - 1) / len(values))


def pooled_error(errors: Sequence[float], sizes: Sequence[int]) -> float:
    """Return the standard error of a mean over groups weighted by size.

    sqrt(sum_g (n_g - 1) n_g e_g^2 / (N - G)) / sqrt(N), N = sum_g n_g over G groups; NaN where no
    group has two values.
    """
    total, groups = sum(sizes), len(sizes)
    if total <= groups:
        return math.nan
    squares = math.fsum((n - 1) * n * error**2 for n, error in zip(sizes, errors, strict=True)
                        if n > 1)
    return math.sqrt(squares / (total - groups) / total)
