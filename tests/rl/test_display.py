"""A run that learns nothing says so in a sentence, once; what is shown of a step is what happened.
"""

import json

import numpy as np
import pytest

from dsjax.rl import display, exam
from dsjax.rl.objective.mismatch import Mismatch
from dsjax.rl.rewards.rules import Scored
from dsjax.rl.rollout import Rollout
from dsjax.rl.tasks.task import Problem
from dsjax.rl.update import Known


def made(rewards, is_truncated=False, parts=None, faults=None):
    """Two groups of two outputs, of 1, 2, 3 and 4 tokens after a question of two."""
    mask = (np.arange(6)[None] >= 2) & (np.arange(6)[None] < 3 + np.arange(4)[:, None])
    real = mask | (np.arange(6)[None] < 2)
    problem = Problem("1+2=", "1123", "3", (1, 2), "3")
    return Rollout(
        problems=(problem,) * 4, texts=(":3", "1123:3", ":4", ":x"), tokens=real.astype(np.int32),
        mask=mask, real=real, engine=np.zeros((4, 6), np.float32), routes=None,
        is_truncated=np.full(4, is_truncated), groups=np.array([0, 0, 1, 1], np.int32),
        scored=tuple(Scored(r, (parts or {"colon": r}) | {}, faults or {}) for r in rewards),
        seconds=1.0)


def known(reference=None, outside=0.01):
    old = np.full((4, 6), -0.5, np.float32)
    return Known(old, reference, Mismatch(0.1, 0.2, np.array([0.9, 1.0, 1.1]), outside), 0.75)


def sentences(rollouts):
    watch, said = display.Watch(), []
    for step, one in enumerate(rollouts, 1):
        said += watch.after(step, display.values(one, known()), one)
    return said


def test_numbers_of_a_step_are_those_of_its_outputs():
    told = display.values(made([1.0, 0.0, 1.0, 1.0]), known(np.full((4, 6), -0.4, np.float32)))
    assert told["reward"] == 0.75
    assert told["constant_groups"] == 0.5
    assert told["length"] == 2.5
    assert told["entropy"] == pytest.approx(0.5)
    assert told["kl"] == pytest.approx(np.exp(0.1) - 0.1 - 1, rel=1e-5)
    assert told["outside"] == 0.01
    assert (told["ratio_low"], told["ratio_high"]) == (0.9, 1.1)
    assert told["rule_colon"] == 0.75
    assert told["truncated"] == 0
    assert "kl" not in display.values(made([1.0, 0.0, 1.0, 1.0]), known())


@pytest.mark.parametrize("reward", [0.0, 1.0])
def test_equal_rewards_are_told_of_once_after_three_steps(reward):
    flat = made([reward] * 4)
    assert sentences([flat] * 2) == []
    (said,) = sentences([flat] * 9)
    assert "step 3" in said
    assert "nothing is learned" in said
    assert "--rl.level" in said
    live = made([1.0, 0.0, 0.0, 0.0])
    assert sentences([flat, flat, live, flat, flat]) == []


def test_truncated_outputs_are_told_of():
    """Though rewards differ."""
    cut = made([1.0, 0.0, 1.0, 0.0], is_truncated=True)
    (said,) = sentences([cut] * 5)
    assert "cut off" in said
    assert "--rl.max-new-tokens" in said


def test_a_format_that_is_never_earned_is_told_of():
    rewards = [1.0, 0.0, 1.0, 0.0]
    never = made(rewards, parts={"colon": 1.0, "format": 0.0})
    once = made(rewards, parts={"colon": 1.0, "format": 1.0})
    assert sentences([never] * 9) == []
    (said,) = sentences([never] * 12)
    assert "rule format" in said
    assert sentences([once, *[never] * 20]) == []


def test_a_rule_that_fails_is_named_with_its_error():
    (said,) = sentences([made([1.0, 0.0, 1.0, 0.0], faults={"code": "ValueError: bad"})] * 4)
    assert "rule code failed on 4 of 4 outputs" in said
    assert "ValueError: bad" in said


def test_engine_and_trainer_that_differ_are_told_of():
    live, watch = made([1.0, 0.0, 1.0, 0.0]), display.Watch()
    (said,) = watch.after(1, display.values(live, known(outside=0.3)), live)
    assert "30% of the tokens" in said
    assert "--rl.correction token" in said


def test_pass_at_k_is_of_answers_and_of_worked_solutions():
    """Of the first question both samples are right and one is worked, of the second one and none.
    """
    found = exam.passes(made([1.0, 1.0, 0.0, 1.0]), 1.0)
    assert found == {"answer_pass_1": 0.75, "answer_pass_2": 1.0, "worked_pass_1": 0.25,
                     "worked_pass_2": 0.5, "cons_1": 0.5, "cons_2": 0.5}


def test_samples_are_lines_of_json(tmp_path):
    display.write_samples(tmp_path / "samples", 5, made([1.0, 1.0, 0.0, 0.0]))
    lines = (tmp_path / "samples" / "step-000005.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["output"] for row in rows] == [":3", "1123:3", ":4", ":x"]
    assert rows[0] == {"prompt": "1+2=", "output": ":3", "reward": 1.0, "rules": {"colon": 1.0},
                       "faults": {}, "truncated": False, "tokens": 1}
