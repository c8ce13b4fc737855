"""What stands beside `zero`: the judge is a stand-in that is known, what is kept is right, as many
outputs are drawn as alone, and verdicts follow the page's rules.
"""

import dataclasses
import json

import numpy as np
import pytest

from dsjax.rl.tasks.task import Problem
from experiments.common import command
from experiments.r1 import STUDY, distil, parity, replies, samples, stages, teach, verdicts
from tests.experiments.test_r1 import kept, said, seeds

ASKED = Problem("8+6+5+2>", "", "", (2, 5, 6, 8), "")


def test_what_is_liked_by_hand():
    assert [replies.liked(ASKED, text) for text in ("8", "8,6,5", "8,6,1", "", "8,6,5,2,2", "865")
            ] == [1, 3, 1, -1, 3, -1]


def test_the_stand_in_prefers_by_the_difference():
    """Of pairs that differ by one, sigmoid(1) = .731 go by liking, of three .953.

    Bounds are five deviations of a share.
    """
    asked = replies.questions(8, "train", 0, 6000)
    assert all(one.prompt.endswith(">") and not one.reference for one in asked[:9])
    of = {one.prompt: one for one in asked}
    gains = np.array([replies.liked(of[one.prompt], one.chosen)
                      - replies.liked(of[one.prompt], one.rejected)
                      for one in replies.pairs(asked, 0)])
    for gain in (1, 3):
        both = gains[np.abs(gains) == gain]
        want = 1 / (1 + np.exp(-gain))
        assert abs((both > 0).mean() - want) < 5 * (want * (1 - want) / both.size) ** 0.5
    held = {one.key for one in replies.questions(8, "held_out", 0, 200)}
    assert not held & {one.key for one in asked}


def test_as_many_outputs_are_drawn_as_alone():
    of, cfg = stages.Sizes(), teach.config().rl
    rows = cfg.prompts * cfg.samples
    assert 2 * of.steps * rows + of.sampled * of.samples == 20 * rows
    assert verdicts.by_outputs(staged())[-1][0] * 1000 == 20 * rows
    assert 20 % cfg.eval_every == 0, "an exam of RL alone is then"


def test_one_right_output_of_a_question_is_kept():
    one, two = Problem("1=", "", "1", (1,), "1"), Problem("2=", "", "2", (2,), "2")

    @dataclasses.dataclass
    class Made:
        problems = (one, one, one, two)
        texts = (":3", "1:1", ":1", ":1")
        scored = tuple(type("S", (), {"total": total}) for total in (0.0, 1.0, 1.0, 0.0))

    assert samples.kept(Made()) == [{"prompt": "1=", "completion": "1:1"}]


def test_questions_of_the_stages_differ():
    run = teach.config()
    texts = [{one.prompt for one in stages.sums(run, 300, at)} for at in (1, 2, 5, 8)]
    for i, some in enumerate(texts):
        assert len(some) > 290
        for others in texts[i + 1 :]:
            assert len(some & others) < 10
    rows = stages.small_talk(run, stages.Sizes())
    assert {len(row["completion"].split(",")) for row in rows} == set(range(1, 9))


def test_students_are_smaller_and_of_both_kinds():
    run = teach.config()
    dense, mixture = (distil.model(run.model, student) for student in distil.STUDENTS)
    assert dense.moe is None
    assert mixture.moe is not None
    assert (mixture.layers, mixture.moe_layers) == (2, 1)


def staged(seed=0, final=0.99, sampled=(0.5, 0.96)):
    exams = [{"step": 8 * i, "sampled": one, "length": 19.0} for i, one in enumerate(sampled)]
    part = {"exams": exams, "passes": [{"answer_pass_1": 0.9, "worked_pass_1": 0.8},
                                       {"answer_pass_1": final, "worked_pass_1": 0.9}]}
    return {"seeds": [seed], "reasoning": part, "for_all": part, "base": part,
            "sizes": dataclasses.asdict(stages.Sizes()), "clock": [{"cpu": 90.0}],
            "right_samples": 0.97, "agreement": 0.8, "possible": 0.85, "liked": [3.0, 7.0]}


def alone(final=0.9):
    return {"passes": [{}, {"answer_pass_1": final, "worked_pass_1": 0.7}],
            "config": {"rl": {"prompts": 32, "samples": 8}},
            "exams": [{"step": step, "sampled": final - 0.1 + step / 200, "length": 9.0}
                      for step in (10, 20, 30)]}


@pytest.mark.parametrize(("finals", "want"), [
    ((0.99, 0.99, 0.96), "supports"), ((0.99, 0.99, 0.94), "inconclusive"),
    ((0.8, 0.8, 0.84), "contradicts"), ((0.8, 0.8, 0.86), "inconclusive")])
def test_a_verdict_on_the_stages_needs_every_seed(finals, want):
    runs = [staged(seed, final) for seed, final in enumerate(finals)]
    assert verdicts.of_stages(runs, [alone()] * 3) == want


def test_rows_of_the_stages():
    (row,) = verdicts.stage_rows([staged()], [alone(0.98)])
    found = dict(zip(verdicts.STAGE_COLUMNS, row, strict=True))
    assert found["cold start"] == found["second tuning"] == "0.900"
    assert (found["reasoning RL"], found["RL for all"], found["length"]) == (
        "0.990", "0.990", "19.0")
    assert (found["RL alone, 20 rollouts"], found["RL alone, 45"]) == ("0.980", "0.980")
    assert found["CPU minutes"] == "1.5"


@pytest.mark.parametrize(("own", "want"), [
    ((0.5, 0.9, 0.9), "supports"), ((0.5, 0.9, 0.92), "inconclusive"),
    ((0.99, 0.98, 0.99), "contradicts")])
def test_a_verdict_on_distillation_needs_every_student(own, want):
    after = 0.9 if want == "contradicts" else 0.96
    runs = [{"distilled": {"pass": {"answer_pass_1": after}},
             "alone": {"passes": [{}, {"answer_pass_1": one}]}} for one in own]
    assert verdicts.of_students(runs) == want


@pytest.mark.parametrize(("shift", "slow", "want"), [
    (0.02, 2.5, "supports"), (0.02, 1.5, "inconclusive"), (0.2, 2.5, "inconclusive"),
    (0.2, 1.5, "contradicts")])
def test_a_verdict_on_trl_asks_for_equal_rewards_and_half_the_time(shift, slow, want):
    beside = [[0.3 + noise] * 20 + [0.9 + noise] * 10 for noise in (0.0, 0.03, 0.01)]
    runs = [{"seeds": [0], "rewards": [one + shift for one in own],
             "ours": {"seconds": [9.0, 1.0, 1.0]}, "seconds": [9.0, slow, slow, 99.0]}
            for own in beside]
    assert verdicts.of_peer(runs, beside) == want
    row = dict(zip(verdicts.PEER_COLUMNS, verdicts.peer_rows(runs, beside)[0], strict=True))
    assert (row["dsjax, all steps"], row["dsjax, last ten"]) == ("0.500", "0.900")
    assert row["ratio"] == f"{slow:.2f}"


@pytest.mark.exhaustive
@pytest.mark.parametrize("part", ["stages", "distil"])
def test_the_quick_forms_run_all_of_their_steps(part, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "QUICK", tmp_path)
    assert command.main(STUDY, argv=[part, "--quick"]) == 0
    made = [json.loads(path.read_text()) for path in
            (tmp_path / "r1" / part / "records").glob("*-seed0.json")]
    assert len(made) == (1 if part == "stages" else 2)
    assert all(one["is_quick"] for one in made)
    assert "| 0 |" in capsys.readouterr().out


@pytest.mark.parametrize("part", ["stages", "distil", "parity"])
def test_tables_and_verdicts_are_those_of_the_seeds(part):
    name = {"parity": "trl"}.get(part, part)
    if not (STUDY.folder / "records" / f"{name}.json").is_file():
        assert STUDY.part(part).verdict is None
        pytest.skip(f"{part} has no record yet")
    if part == "stages":
        runs, beside = seeds("stages"), seeds("zero")
        rows, verdict = verdicts.stage_rows(runs, beside), verdicts.of_stages(runs, beside)
        assert kept("preference")["rows"] == verdicts.judge_rows(runs)
    elif part == "distil":
        runs = [one for student in distil.STUDENTS for one in seeds(f"distil-{student}")]
        rows, verdict = verdicts.student_rows(runs), verdicts.of_students(runs)
    else:
        runs = seeds("trl")
        beside = [one["curves"]["reward"][: parity.STEPS] for one in seeds("zero")]
        rows, verdict = verdicts.peer_rows(runs, beside), verdicts.of_peer(runs, beside)
    assert kept(name)["rows"] == rows
    assert kept(name)["verdict"] == verdict
    assert verdict in said()
    assert STUDY.part(part).verdict.startswith(f"{verdict}:")
