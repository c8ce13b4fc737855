"""Exam of a policy on held-out problems: greedy accuracy, and samples by the kind of response.

An answer of a digit is guessed by one sample in ten, so an answer that is right says little; a
response is worked exactly if it is the problem's long one; pass@k is of either kind.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dsjax.data.tokenizers.tokenizer import Tokenizer
from dsjax.evaluate.grade import estimators
from dsjax.infer.engine.engine import Engine
from dsjax.rl import rollout
from dsjax.rl.rollout import Asked, Rollout
from dsjax.rl.tasks.task import Problem


@dataclass(frozen=True)
class Exam:
    """Shares of held-out problems; NaN where nothing is of a kind."""

    greedy: float
    """Of greedy outputs that earn every rule in full."""
    sampled: float
    """The same of outputs at temperature 1."""
    length: float
    """Mean tokens of those."""
    long: float
    """Share of those that work before they answer."""
    right_long: float
    """Share of right answers among those."""
    right_short: float
    """And among the others."""
    worked: float
    """Share of outputs that are the worked solution to the character."""


def take(engine: Engine, words: Tokenizer, problems: list[Problem], asked: Asked,
         seed: int) -> Exam:
    """Ask each problem greedily and once at temperature 1."""
    greedy, sampled = (
        rollout.roll_out(engine, words, problems, Asked(
            1, asked.max_prompt_tokens, asked.max_new_tokens, asked.rewards, temperature),
            (seed, 2**20)) for temperature in (0.0, 1.0))
    most = sum(asked.rewards.values())
    right = np.isclose(sampled.rewards, most)
    is_long = np.array([not text.startswith(":") for text in sampled.texts])
    worked = np.array([text == problem.long
                       for text, problem in zip(sampled.texts, problems, strict=True)])
    return Exam(
        greedy=float(np.isclose(greedy.rewards, most).mean()),
        sampled=float(right.mean()), length=float(sampled.lengths.mean()),
        long=float(is_long.mean()), right_long=_mean(right[is_long]),
        right_short=_mean(right[~is_long]), worked=float(worked.mean()))


def passes(made: Rollout, most: float) -> dict[str, float]:
    """pass@k of right answers and of solutions worked to the character, for k = 1, 2, 4, ...

    `most` is the full reward. Over all questions; the names are `answer_pass_1` and so on.
    """
    right = np.isclose(made.rewards, most)
    worked = np.array([text == problem.long
                       for text, problem in zip(made.texts, made.problems, strict=True)])
    found = {}
    for name, passed in (("answer", right), ("worked", worked)):
        counts = [(int((made.groups == group).sum()), int(passed[made.groups == group].sum()))
                  for group in np.unique(made.groups)]
        k, samples = 1, min(size for size, _ in counts)
        while k <= samples:
            found[f"{name}_pass_{k}"] = estimators.mean(
                [estimators.pass_at_k(size, hits, k) for size, hits in counts])
            k *= 2
    return found


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else float("nan")
