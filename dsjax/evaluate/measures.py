"""Measures of scored texts and of graded answers, with their standard errors.

As lm-evaluation-harness 0.4.13 defines them (lm_eval/api/metrics.py, and `process_results` in
lm_eval/api/task.py). `acc_norm` divides a choice's log-probability by its characters, as that
version does; for ASCII they are its bytes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dsjax.evaluate.grade import estimators
from dsjax.evaluate.likelihood import Scores


@dataclass(frozen=True)
class Measure:
    """A number with its standard error."""

    value: float
    stderr: float | None
    """None where there is one item, or no formula."""
    count: int
    """Items."""


def mean(values: Sequence[float]) -> Measure:
    """The mean, and its error by the sample's deviation."""
    stderr = estimators.standard_error(values) if len(values) > 1 else None
    return Measure(estimators.mean(values), stderr, len(values))


def pooled(parts: Sequence[Measure]) -> Measure:
    """The mean of parts weighted by size, and the pooled error of the harness's groups."""
    sizes = [part.count for part in parts]
    total = sum(sizes)
    value = sum(part.value * part.count for part in parts) / total
    errors = [part.stderr for part in parts if part.stderr is not None]
    is_known = len(errors) == len(parts)
    return Measure(value, estimators.pooled_error(errors, sizes) if is_known else None, total)


def perplexity(logprobs: Sequence[float]) -> Measure:
    """exp(-mean); the error by the delta method, where the harness draws samples again."""
    found = mean(logprobs)
    value = _exp(-found.value)
    return Measure(value, None if found.stderr is None else value * found.stderr, found.count)


def weighted_perplexity(logprobs: Sequence[float], weights: Sequence[int]) -> Measure:
    """exp(-sum log p / sum of weights), of words or bytes."""
    return Measure(_exp(-sum(logprobs) / sum(weights)), None, len(logprobs))


def bits_per_byte(logprobs: Sequence[float], sizes: Sequence[int]) -> Measure:
    """-sum log2 p / bytes."""
    return Measure(-sum(logprobs) / sum(sizes) / math.log(2), None, len(logprobs))


def ranked(scores: Sequence[Scores], choices: Sequence[str], gold: int) -> dict[str, float]:
    """Judge the likeliest of several continuations, plain and by the characters of its choice."""
    totals = np.array([one.total for one in scores])
    lengths = np.array([float(len(choice)) for choice in choices])
    return {"acc": float(int(np.argmax(totals)) == gold),
            "acc_norm": float(int(np.argmax(totals / lengths)) == gold)}


def by_position(scores: Sequence[Scores], starts: Sequence[int],
                edges: Sequence[int]) -> list[Measure]:
    """Perplexity of tokens by their position in a text.

    starts: the position of each continuation's first token; edges: positions at which ranges begin,
    the last of which is open. A range without tokens is not a number.
    """
    positions = np.concatenate([start + np.arange(len(one.logprobs))
                                for one, start in zip(scores, starts, strict=True)])
    logprobs = np.concatenate([one.logprobs for one in scores]).astype(np.float64)
    ends = [*edges[1:], np.inf]
    inside = [logprobs[(positions >= a) & (positions < b)] for a, b in zip(edges, ends)]
    return [perplexity(part.tolist()) if len(part) else Measure(math.nan, None, 0)
            for part in inside]


def words(text: str) -> int:
    """Words of a text as the harness counts them: pieces between blanks, empty ones at its ends."""
    return len(re.split(r"\s+", text))


def _exp(power: float) -> float:
    return math.exp(power) if power < 700 else math.inf
