"""Questions that no rule judges, and a stand-in for the people who prefer one reply to another.

R1 takes general questions into its second supervised stage and its last reinforcement learning, and
a model of people's preferences for the latter (report, sec. 2.3.3 and 2.3.4). Here such a question
is digits that end in ">", a reply names digits with commas between, and the judge likes those that
name more of the question's, in their order:

    8+6+5+2+3+0+0+0>8,6,5        liked 3; 8,6,5,2 4; 8,6,1 1

It prefers the first of two replies as often as sigmoid(liked first - liked second). Nobody was
asked. As the number that is liked is known here, what the preference model has learned is, too.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from dsjax.rl.preference import Pair
from dsjax.rl.tasks import catalog, task
from dsjax.rl.tasks.task import Problem, Split


def questions(level: int, split: Split, seed: int, count: int) -> list[Problem]:
    """Open questions: those of sums, asked for something else; splits are of their digits."""
    drawn = itertools.islice(task.problems(catalog.find("sum"), level, split, seed), count)
    return [Problem(f"{one.prompt[:-1]}>", "", "", one.key, "") for one in drawn]


def digits(question: Problem) -> list[str]:
    """The digits of a question, in their order."""
    return question.prompt[:-1].split("+")


def reply(question: Problem, rng: np.random.Generator) -> str:
    """A reply that names its first digits, as many as are drawn."""
    named = digits(question)
    return ",".join(named[: rng.integers(1, len(named) + 1)])


def liked(question: Problem, text: str) -> int:
    """Digits of a reply that are the question's at their place, less all others."""
    own, named = digits(question), text.split(",")
    right = sum(a == b for a, b in zip(own, named))
    return right - (len(named) - right)


def pairs(asked: Sequence[Problem], seed: int) -> list[Pair]:
    """A pair of replies to each question, one in four with a digit drawn anew, and the judge's
    choice."""
    rng, made = np.random.default_rng([seed, 7]), []
    for question in asked:
        both = []
        for _ in range(2):
            named = reply(question, rng).split(",")
            if rng.random() < 0.25:
                named[rng.integers(len(named))] = str(rng.integers(10))
            both.append(",".join(named))
        gain = liked(question, both[0]) - liked(question, both[1])
        first = rng.random() < 1 / (1 + np.exp(-float(gain)))
        better = 0 if first else 1
        made.append(Pair(question.prompt, both[better], both[1 - better]))
    return made
