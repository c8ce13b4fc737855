"""Exam of a policy on held-out problems: greedy accuracy, and samples by the kind of response.

An answer of a digit is guessed by one sample in ten, so an answer that is right says little; a
response is worked exactly if it is the problem's long one; pass@k is of either kind. cons@k is the
majority of k samples: what RL comes to, if it makes a habit sure and adds none, is near it already.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from dsjax.data.tokenizers.tokenizer import Tokenizer
from dsjax.evaluate.grade import estimators
from dsjax.infer.engine.engine import Engine
from dsjax.rl import rollout
from dsjax.rl.rewards import rules
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
    """Ask each problem, which rules judge, greedily and once at temperature 1."""
    greedy, sampled = (
        rollout.roll_out(engine, words, problems, dataclasses.replace(
            asked, samples=1, temperature=temperature), (seed, 2**20))
        for temperature in (0.0, 1.0))
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
    """pass@k of right answers and of solutions worked to the character, and cons@k of answers.

    k = 1, 2, 4, ..., to the samples of a question; `most` is the full reward. Over all questions;
    the names are `answer_pass_1`, `worked_pass_1`, `cons_1` and so on. cons@k (R1 report, sec. 3.1)
    asks if the answer that most of a question's first k samples give is right; samples without one
    do not vote, and without votes it is wrong. It is left out where no rule reads an answer.
    """
    right = np.isclose(made.rewards, most)
    worked = np.array([text == problem.long
                       for text, problem in zip(made.texts, made.problems, strict=True)])
    rows = [np.flatnonzero(made.groups == group) for group in np.unique(made.groups)]
    samples = min(map(len, rows))
    ks = [2**i for i in range(samples.bit_length())]
    found = {}
    for name, passed in (("answer", right), ("worked", worked)):
        for k in ks:
            found[f"{name}_pass_{k}"] = estimators.mean(
                [estimators.pass_at_k(len(own), int(passed[own].sum()), k) for own in rows])
    voting = next((name for name in made.scored[0].parts if name in rules.VOTES), None)
    if voting is not None:
        for k in ks:
            found[f"cons_{k}"] = estimators.mean([_agreed(made, voting, own[:k]) for own in rows])
    return found


def _agreed(made: Rollout, rule: str, rows: np.ndarray) -> float:
    """1 if the rule finds right the answer that most of a question's outputs give."""
    given = [rules.VOTES[rule](made.problems[row].prompt, made.texts[row]) for row in rows]
    votes = [(answer, made.scored[row].parts[rule] == 1)
             for row, answer in zip(rows, given, strict=True) if answer is not None]
    if not votes:
        return 0.0
    voted, verdicts = zip(*votes, strict=True)
    return float(estimators.cons_at_k(voted, verdicts))


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else float("nan")
