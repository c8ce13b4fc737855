"""A run of reinforcement learning from nothing: both sides agree at every step, the reference is
replaced when it is due, and a folder is of one run.
"""

import dataclasses
import io
import json

import numpy as np
import pytest

from dsjax.cli.main import main
from dsjax.config.parallel import ParallelConfig
from dsjax.config.stored import run_from_json
from dsjax.errors import UserError
from dsjax.report.metrics import read_metrics
from dsjax.rl import base, loop
from dsjax.rl.exam import Exam
from dsjax.rl.tasks import catalog, task
from dsjax.terminal import Console
from tests.rl import small


@pytest.mark.slow
def test_a_run_pre_trains_its_base_and_takes_its_steps(whole):
    said = (whole.parent / "said.txt").read_text()
    events = read_metrics(whole / "metrics.jsonl", "train")
    assert [event["step"] for event in events] == [1, 2, 3, 4]
    exams = read_metrics(whole / "metrics.jsonl", "exam")
    assert [event["step"] for event in exams] == [0, 4]
    for event in read_metrics(whole / "metrics.jsonl", "pass"):
        found = [event[f"answer_pass_{k}"] for k in (1, 2, 4)]
        assert 0 <= event["worked_pass_1"] <= found[0] <= found[1] <= found[2] <= 1
    assert "base: " in said
    assert "step 4: held out" in said
    assert (whole / "base" / "checkpoints" / "step-00000150").is_dir()
    lived = [event for event in events if event["constant_groups"] < 1]
    assert lived
    assert all(event["grad_norm"] > 0 for event in lived)
    assert any(0 < event["reward"] < 1 for event in events)


@pytest.mark.slow
def test_engine_and_trainer_agree_at_every_step(whole):
    """Weights of the step before would be off by far more: a step changes many a ratio by 1e-2."""
    for event in read_metrics(whole / "metrics.jsonl", "train"):
        assert event["outside"] == 0
        assert abs(event["ratio_low"] - 1) < 1e-4
        assert abs(event["ratio_high"] - 1) < 1e-4
        assert 0 <= event["mismatch_k3"] < 1e-9
        assert event["equal_routes"] == 1


@pytest.mark.slow
def test_the_reference_is_the_base_and_then_the_policy(whole):
    """Replaced after every second step: the KL of a rollout is 0 after it, and at the step that
    follows it is above 0 if the policy has moved in between.
    """
    events = read_metrics(whole / "metrics.jsonl", "train")
    moved = [False, events[0]["constant_groups"] < 1, False, events[2]["constant_groups"] < 1]
    assert any(moved)
    for event, has_moved in zip(events, moved, strict=True):
        assert event["kl"] > 1e-5 if has_moved else abs(event["kl"]) < 1e-9


@pytest.mark.slow
def test_samples_are_of_questions_from_the_training_split(whole):
    cfg, of = small.LEARNS.rl, catalog.find("sum")
    held_out = {one.prompt for one in task.exam(of, cfg.level, 60, 7)}
    seen = set()
    for step in (1, 2, 3, 4):
        lines = (whole / "samples" / f"step-{step:06d}.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        assert len(rows) == 16
        seen |= {row["prompt"] for row in rows}
        assert all(row["prompt"] == rows[i // 4 * 4]["prompt"] for i, row in enumerate(rows))
    assert len(seen) > 12
    assert not seen & held_out


@pytest.mark.slow
def test_a_finished_run_has_nothing_to_do(whole):
    before = small.told_of(whole)
    said = small.teach(small.LEARNS, whole)
    assert "holds this run finished after step 4" in said
    assert "--rl.steps above 4" in said
    assert small.told_of(whole) == before


@pytest.mark.slow
def test_a_folder_of_another_run_is_refused(whole):
    with pytest.raises(UserError, match=r"rl\.samples=4, not 2.*--output\.folder"):
        small.teach(small.with_rl(samples=2, steps=9), whole)
    with pytest.raises(UserError, match=r"dsjax train.*--init-from"):
        small.teach(small.LEARNS, whole / "base")
    assert run_from_json(whole / "config.json").rl == small.LEARNS.rl


def test_what_cannot_be_taught_is_refused(tmp_path):
    plain = dataclasses.replace(small.LEARNS, rl=None)
    with pytest.raises(UserError, match=r"says nothing of reinforcement learning.*--rl\.task"):
        small.teach(plain, tmp_path / "a")
    piped = dataclasses.replace(small.LEARNS, parallel=ParallelConfig(pipe=2))
    with pytest.raises(UserError, match=r"no pipeline.*--rl\.engine\.data"):
        small.teach(piped, tmp_path / "b")
    assert not list(tmp_path.iterdir())


def test_a_base_whose_worked_solutions_are_wrong_is_not_good():
    found = Exam(0.1, 0.3, 7.0, 0.25, 0.9, 0.1, 0.2)
    run = small.with_rl(base_right=0.93)
    assert not base.is_good(found, run)
    assert not base.is_good(dataclasses.replace(found, right_long=float("nan")), run)
    assert base.is_good(dataclasses.replace(found, right_long=0.95), run)
    said = str(base.refusal(found, run, 400))
    assert "90%" in said
    assert "--train.steps" in said


def test_the_text_of_a_base_holds_no_question_of_the_exam(tmp_path):
    run = small.LEARNS
    base.write(tmp_path, run, task.documents(catalog.find("sum"), 3, run.rl.base_long, run.seed))
    texts = [json.loads(line)["text"]
             for line in (tmp_path / "text.jsonl").read_text().splitlines()]
    assert sum(len(text) + 1 for text in texts) >= 150 * 8 * 64
    held_out = {one.prompt for one in task.exam(catalog.find("sum"), 3, 60, 7)}
    assert not {text.partition("=")[0] + "=" for text in texts} & held_out
    assert 0.2 < np.mean(["=:" not in text for text in texts]) < 0.3


def test_train_leaves_a_run_of_rewards_to_rl(capsys):
    assert main(["train", "r1_zero_tiny"]) == 2
    assert "use dsjax rl r1_zero_tiny" in capsys.readouterr().err


def test_the_loop_refuses_several_updates_that_cut_groups():
    with pytest.raises(ValueError, match=r"prompts=8 is not divisible by updates=3"):
        small.with_rl(updates=3)
    with pytest.raises(ValueError, match=r"samples=1"):
        small.with_rl(samples=1)


def test_nothing_is_made_before_a_run_is_known_to_be_one(tmp_path):
    with pytest.raises(UserError, match="did you mean colon"):
        loop.reinforce(dataclasses.replace(
            small.with_rl(rewards="colom"), output=dataclasses.replace(
                small.LEARNS.output, folder=str(tmp_path / "run"))), Console(file=io.StringIO()))
    assert not list(tmp_path.iterdir())
