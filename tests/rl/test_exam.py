"""pass@k counts samples that pass, cons@k the answer that most give: by hand, on two questions."""

import numpy as np
import pytest

from dsjax.rl import exam
from dsjax.rl.rewards import rules
from dsjax.rl.rollout import Rollout
from dsjax.rl.tasks.task import Problem

FIRST = Problem("1+2=", "1123", "3", (1, 2), "3")
SECOND = Problem("4+4=", "4448", "8", (4, 4), "8")
TEXTS = (":5", "x", "1123:3", ":3", ":4", "9:4", "4448:8", ":8:8")
"""Right of the first: two of four, of which one is worked; of the second one, which is worked."""


def made(texts=TEXTS, rewards=None):
    """Two groups of outputs."""
    half = len(texts) // 2
    problems = (FIRST,) * half + (SECOND,) * half
    rows = [(one.prompt, text, one.reference) for one, text in zip(problems, texts)]
    empty = np.zeros((len(texts), 1))
    return Rollout(
        problems=problems, texts=texts, tokens=empty, mask=empty > 0, real=empty > 0, engine=empty,
        routes=None, is_truncated=empty[:, 0] > 0, seconds=1.0,
        groups=np.repeat(np.arange(2, dtype=np.int32), half),
        scored=tuple(rules.score_all(rewards or {"colon": 1.0}, rows)))


def test_passes_and_majorities_are_those_counted_by_hand():
    """Of two samples of four, two right: 1 - 1/6; one right: 1 - 3/6.

    Votes of the first question: 5, none, 3, 3; of the second: 4, 4, 8, none.
    """
    found = exam.passes(made(), 1.0)
    assert found == pytest.approx({
        "answer_pass_1": (2 / 4 + 1 / 4) / 2, "answer_pass_2": (5 / 6 + 1 / 2) / 2,
        "answer_pass_4": 1.0,
        "worked_pass_1": 1 / 4, "worked_pass_2": 1 / 2, "worked_pass_4": 1.0,
        "cons_1": 0.0, "cons_2": 0.0, "cons_4": 1 / 2})


def test_no_majority_is_told_where_rules_read_no_answer():
    """A run may have such rules, and its exam must not end it."""
    assert "cons_1" not in exam.passes(made(rewards={"countdown": 1.0}), 1.0)
    silent = exam.passes(made(("", "x", "", "y")), 1.0)
    assert silent["cons_2"] == silent["answer_pass_2"] == 0


def test_a_rule_of_form_has_no_say_in_the_majority():
    """Both rules are needed for the full reward; the vote is on the answer alone."""
    found = exam.passes(made(rewards={"format": 1.0, "colon": 1.0}), 2.0)
    assert found["answer_pass_4"] == 0
    assert found["cons_4"] == 1 / 2
