"""The control's text differs from the base's in its sums alone; verdicts follow the page's rules;
a run is told whole, and one that is stopped is stopped.
"""

import dataclasses
import itertools
import json
import re
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest

from dsjax.errors import UserError
from dsjax.rl.tasks import task
from dsjax.rl.tasks.digits import SUM
from experiments.common import command, machines
from experiments.r1 import STUDY, control, tables, teach, zero


def test_the_control_reads_the_same_problems_with_other_sums():
    """Of 400 worked solutions with 8 sums each, a tenth of the sums are right by chance.

    A count of 3,200 draws at .1 has a deviation of 17; the bound is six of them.
    """
    run = dataclasses.replace(teach.config(), seed=5)
    right = task.documents(SUM, 8, run.rl.base_long, 5)
    pairs, worked, equal = zip(right, control.documents(run)), 0, 0
    while worked < 400:
        ours, theirs = next(pairs)
        prompt, response = ours.split("=")
        assert theirs.startswith(prompt + "=")
        assert len(theirs) == len(ours)
        assert theirs[-2:] == ours[-2:], "the answer is right"
        if response.startswith(":"):
            assert theirs == ours
            continue
        worked += 1
        trace = theirs.split("=")[1]
        assert trace[:16:2] == response[:16:2], "the digits"
        equal += sum(a == b for a, b in zip(trace[1:16:2], response[1:16:2]))
    assert abs(equal - 320) < 6 * 17


def made(seed=0, sampled=(0.3, 0.97), length=(7.0, 19.0), works=0.25, right=0.95, **more):
    """Record of a run, as far as tables and verdicts look at it."""
    exam = {"greedy": 0.1, "sampled": 0.0, "long": works, "right_long": right, "right_short": 0.1,
            "worked": 0.2}
    passes = [{"answer_pass_1": one, "answer_pass_2": one + 0.01, "worked_pass_1": one / 2,
               "worked_pass_2": 1.0, "cons_2": 0.5} for one in sampled]
    return {"seeds": [seed], "base_steps": 400, "passes": passes,
            "exams": [exam | {"length": one} for one in length],
            "curves": {"constant_groups": [0.0, 0.5]}, "seconds_of_passes": 60.0, "cores": 2,
            "clock": [{"wall": 100.0, "cpu": 150.0, "others": 20.0},
                      {"wall": 80.0, "cpu": 100.0, "others": 7.0}]} | more


@pytest.mark.parametrize(("of_last", "want"), [
    ({}, "supports"),
    ({"sampled": (0.46, 0.97)}, "inconclusive"),
    ({"sampled": (0.3, 0.94)}, "inconclusive"),
    ({"length": (7.0, 10.4)}, "inconclusive"),
])
def test_a_verdict_needs_every_seed(of_last, want):
    assert tables.verdict([made(0), made(1), made(2, **of_last)]) == want
    same = {"sampled": (0.3, 0.39)} if want == "supports" else {"length": (7.0, 10.0)}
    assert tables.verdict([made(seed, **same) for seed in range(3)]) == "contradicts"


@pytest.mark.parametrize(("of_last", "want"), [
    ({}, "supports"),
    ({"sampled": (0.1, 0.21)}, "inconclusive"),
    ({"length": (7.0, 11.0)}, "inconclusive"),
    ({"works": 0.04}, "cannot speak"),
    ({"right": 0.6}, "cannot speak"),
])
def test_the_control_stays_where_it_is_in_every_seed(of_last, want):
    flat = {"sampled": (0.1, 0.12), "length": (7.0, 7.5), "right": 0.1}
    runs = [made(0, **flat), made(1, **flat), made(2, **flat | of_last)]
    assert tables.verdict_of_control(runs) == want
    grows = [made(seed, **flat | {"length": (7.0, 12.0)}) for seed in range(3)]
    assert tables.verdict_of_control(grows) == "contradicts"


def test_rows_are_those_of_the_records():
    """Of 180 seconds 60 were pass@k; 27 s of the others on two processors are .075."""
    runs = [made(0), made(1, sampled=(0.2, 0.99), length=(8.0, 18.0))]
    first, _, least, most = (dict(zip(tables.COLUMNS, row, strict=True))
                             for row in tables.rows(runs))
    assert (first["seed"], first["steps of the base"]) == (0, 400)
    assert (first["base sampled"], first["RL sampled"]) == ("0.300", "0.970")
    assert (first["live groups"], first["minutes"], first["others"]) == ("0.750", "2.0", "0.075")
    assert first["CPU minutes"] == "4.2"
    assert (least["seed"], least["RL sampled"], least["base length"]) == ("least", "0.970", "7.0")
    assert (most["RL sampled"], most["base sampled"]) == ("0.990", "0.300")
    found = [dict(zip(tables.pass_columns((1, 2), 2), row, strict=True))
             for row in tables.pass_rows(runs, (1, 2), 2)]
    assert [(row["seed"], row["policy"], row["answer pass@1"], row["worked pass@1"])
            for row in found] == [
        (0, "base", "0.300", "0.150"), (0, "after RL", "0.970", "0.485"),
        (1, "base", "0.200", "0.100"), (1, "after RL", "0.990", "0.495"),
        ("least", "base", "0.200", "0.100"), ("least", "after RL", "0.970", "0.485")]
    assert found[0]["cons@2"] == "0.500"


@pytest.mark.slow
@pytest.mark.exhaustive  # as all that start `dsjax rl` in processes of their own
def test_the_quick_form_runs_a_control_from_its_own_text(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "QUICK", tmp_path)
    assert command.main(STUDY, argv=["control", "--quick"]) == 0
    folder = tmp_path / "r1" / "control"
    found = json.loads((folder / "records" / "control-seed0.json").read_text())
    assert found["is_quick"]
    assert [len(found["curves"][name]) for name in teach.CURVES] == [2] * len(teach.CURVES)
    assert [exam["step"] for exam in found["exams"]] == [0, 1, 2]
    assert [one["step"] for one in found["passes"]] == [0, 2]
    assert found["base_steps"] == 12
    assert found["config"]["rl"]["base_right"] == 0
    (clock,) = found["clock"]
    assert 0 < found["seconds_of_passes"] < clock["wall"]
    assert clock["cpu"] > 0
    run = dataclasses.replace(teach.config(), rl=dataclasses.replace(teach.config().rl, level=3))
    text = (folder / "runs" / "control-seed0" / "base" / "text.jsonl").read_text().splitlines()
    assert [json.loads(line)["text"] for line in text[:50]] == list(
        itertools.islice(control.documents(run), 50))
    assert "sums are drawn" in (folder / "control.svg").read_text()
    assert "| least | 12 |" in capsys.readouterr().out


def test_a_child_that_fails_or_is_stopped_is_told_of(tmp_path):
    words = ["python", "-m", "dsjax", "rl", "r1_zero_tiny"]
    failing = [sys.executable, "-c", "raise SystemExit(3)", *words[3:]]
    with pytest.raises(UserError, match=r"dsjax.*status 3"):
        teach._timed(failing, tmp_path / "one.clock")
    waiting = [sys.executable, "-c", "import time; time.sleep(60)"]
    here = threading.get_ident()
    timer = threading.Timer(0.5, signal.pthread_kill, [here, signal.SIGTERM])
    before = signal.getsignal(signal.SIGTERM)
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        teach._timed(waiting, tmp_path / "one.clock")
    assert signal.getsignal(signal.SIGTERM) is before
    found = [json.loads(line) for line in (tmp_path / "one.clock").read_text().splitlines()]
    assert [one["wall"] < 30 for one in found] == [True, True]


def test_seconds_of_all_processors_are_read_where_linux_tells(tmp_path):
    ticks = np.array([100, 10, 20, 9999, 500, 3, 7, 0, 0, 0])
    path = tmp_path / "stat"
    path.write_text("cpu  " + " ".join(map(str, ticks)) + "\ncpu0 1 1 1 1 1 1 1 0 0 0\n")
    per_second = int(subprocess.run(["getconf", "CLK_TCK"], capture_output=True).stdout)
    assert machines.busy_seconds(path) == pytest.approx(140 / per_second)
    assert machines.busy_seconds(tmp_path / "none") == 0


def kept(name):
    return json.loads((STUDY.folder / "records" / f"{name}.json").read_text())


def seeds(arm):
    return [kept(f"{arm}-seed{seed}") for seed in teach.SEEDS]


def said():
    """Verdicts of the page, in the order of the parts."""
    page = (STUDY.folder / "README.md").read_text()
    return re.findall(r"^Verdict: (cannot speak|\w+)", page, re.MULTILINE)


def test_tables_and_verdict_are_those_of_the_seeds():
    runs = seeds("zero")
    assert kept("zero")["rows"] == tables.rows(runs)
    assert kept("passes")["rows"] == tables.pass_rows(runs, zero.K, zero.VOTES)
    assert said()[0] == kept("zero")["verdict"] == tables.verdict(runs)
    assert STUDY.part("zero").verdict.startswith(f"{said()[0]}:")


def test_the_control_and_its_verdict_are_those_of_its_seeds():
    runs = seeds("control")
    assert kept("control")["rows"] == tables.rows(runs)
    assert said()[1] == kept("control")["verdict"] == tables.verdict_of_control(runs)
    assert STUDY.part("control").verdict.startswith(f"{said()[1]}:")


def test_a_control_differs_in_the_text_of_its_base_alone():
    """And in what is accepted: the flag that lets a base without working solutions pass."""
    for ours, theirs in zip(seeds("zero"), seeds("control"), strict=True):
        configs = [one["config"] for one in (ours, theirs)]
        for config in configs:
            del config["rl"]["pass_samples"], config["rl"]["base_right"]
        assert configs[0] == configs[1]
        assert ours["seeds"] == theirs["seeds"]


def test_engine_and_trainer_agree_at_every_step_of_the_records():
    """In float32 they are equal to rounding; a router may flip where two affinities are equal."""
    runs = [one["curves"] for arm in ("zero", "control") for one in seeds(arm)]
    assert {len(curves["reward"]) for curves in runs} == {45}
    for path in (STUDY.folder / "records").glob("stages-seed*.json"):
        made = json.loads(path.read_text())
        runs += [made[part]["curves"] for part in ("reasoning", "for_all")]
    for curves in runs:
        assert max(curves["mismatch_k3"]) < 1e-9
        assert min(curves["equal_routes"]) > 0.999


def test_the_base_could_work_out_what_rl_makes_it_work_out():
    """The page says that none is found: 64 samples of the base have a worked solution already."""
    for made in seeds("zero"):
        assert made["passes"][0]["worked_pass_64"] >= 0.95
        assert made["passes"][-1]["worked_pass_1"] > 3 * made["passes"][0]["worked_pass_1"]
