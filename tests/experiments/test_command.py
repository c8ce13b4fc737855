"""The index tells of every experiment; their commands answer `--help` without running, refuse what
they do not know, leave records alone when quick, and say in a record when the tree was not clean.
"""

import dataclasses
import fcntl
import hashlib
import json
import re
import runpy
import subprocess
import sys
import types

import pytest

from dsjax.errors import UserError
from dsjax.runtime import hardware
from experiments import __main__ as front
from experiments.common import claims, command, index, record, study
from experiments.common.record import ROOT, Tree
from experiments.common.study import Flag, Part, Study

STUDIES = study.studies()
MODULES = sorted(p for p in study.ROOM.rglob("*.py") if '__name__ == "__main__"' in p.read_text())


def kept():
    """Every record, page and figure of the experiments, by content."""
    found = [p for p in study.ROOM.rglob("*") if p.suffix in (".json", ".md", ".svg")]
    return {p: hashlib.sha256(p.read_bytes()).hexdigest() for p in found}


def test_every_folder_is_a_study_with_its_page_parts_and_records(capsys):
    folders = {p.name for p in study.ROOM.iterdir() if p.is_dir() and p.name[0] not in "._"}
    assert {s.name for s in STUDIES} == folders - {"common"}
    assert front.main(["--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert [s["name"] for s in shown] == [s.name for s in STUDIES]
    for one, told in zip(STUDIES, shown, strict=True):
        page = (ROOT / told["page"]).read_text()
        assert told["claim"]
        assert told["source"]
        named = {f"{name}.json" for part in one.parts for name in part.records}
        made = {p.name for p in (one.folder / "records").glob("*")}
        arms = {p.name for part in one.parts if part.arms
                for p in (one.folder / "records").glob(part.arms)}
        assert made <= named | arms, "every record belongs to a part"
        is_open = any(said["state"] != "recorded" for said in told["parts"])
        assert is_open == ("Not run yet" in page), "a page says what it lacks"
        for part, said in zip(one.parts, told["parts"], strict=True):
            assert said["command"].startswith(f"python -m experiments.{one.name}.")
            assert (one.folder / f"{part.name}.py").is_file()
            assert said["commit"] or said["state"] == "open"
            assert said["cost"]
            assert said["quick"]
            assert "Verdict" in page or said["verdict"] is None


def test_the_index_for_people_gives_command_state_and_verdict(capsys):
    assert front.main(["demo"]) == 0
    out = capsys.readouterr().out
    assert "python -m experiments.demo.run" in out
    assert "recorded 20" in out
    assert "verdict  supports" in out
    assert "growth" not in out


def test_the_index_and_every_help_answer_without_jax_and_touch_nothing():
    before = kept()
    code = """
import contextlib, io, runpy, sys
for argv in (["experiments"], ["experiments", "--help"], *([name, "--help"] for name in NAMES)):
    sys.argv, out = argv, io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        runpy.run_module(argv[0], run_name="__main__", alter_sys=True)
    assert "usage" in out.getvalue() or len(argv) == 1, argv
    assert not {"jax", "numpy"} & set(sys.modules), argv
"""
    names = [f"experiments.{one.name}.run" for one in STUDIES]
    subprocess.run([sys.executable, "-c", code.replace("NAMES", repr(names))], check=True, cwd=ROOT)
    assert kept() == before


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(study.ROOM)))
def test_every_module_that_runs_has_help_and_quick(path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [str(path), "--help"])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(path), run_name="__main__")
    assert not stop.value.code
    out = capsys.readouterr().out
    assert out.startswith("usage: ")
    assert "--quick" in out or path.parent.name in ("common", "experiments")


@pytest.mark.parametrize(("name", "words", "said"), [
    ("growth", ["--quik"], "--quik"),
    ("growth", ["2"], "unrecognized arguments: 2"),
    ("pipelines", ["curve"], "did you mean curves?"),
    ("pipelines", ["curves", "ahed"], "did you mean ahead?"),
    ("pipelines", ["--redraw"], "--redraw"),  # of some parts only
    ("fp8_vs_bf16", ["xyz"], "choose from training, bytes, accumulation, products"),
    ("speed", ["--rounds", "0"], "'0' is no whole number from 1"),
    ("speed", ["--rounds", "9" * 5000], "is no whole number from 1"),
    ("speed", ["--shapes", "huge", "--quick"], "there is no shape 'huge'"),
    ("speed", ["--dirty"], "--peer-python"),
    ("pod", ["v6 bf16", "--dirty"], "there is no case 'v6 bf16'"),
])
def test_what_is_not_known_is_refused_in_a_sentence(name, words, said, capsys):
    before = kept()
    one = next(s for s in STUDIES if s.name == name)
    assert command.main(one, argv=words) == 2
    found = capsys.readouterr()
    assert said in found.err
    assert found.err.count("\n") == 1
    assert not found.out
    assert kept() == before


def test_an_unknown_experiment_is_refused_with_the_nearest(capsys):
    assert front.main(["groth"]) == 2
    assert "did you mean growth?" in capsys.readouterr().err


@pytest.fixture
def fake(monkeypatch, tmp_path):
    """A study in a folder of its own, whose part writes one record."""
    monkeypatch.setattr(study, "ROOM", tmp_path / "experiments")
    monkeypatch.setattr(study, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(command, "QUICK", tmp_path / "runs" / "quick")
    monkeypatch.setattr(record, "tree", lambda: Tree("abc", ()))
    monkeypatch.setattr(record, "fill_pages", lambda: None)
    monkeypatch.setattr(claims, "fill_pages", lambda: None)
    part = Part("part", "python -m experiments.fake.run", "what is", "no time", "less", None,
                ("one",), arms="*-seed*.json", flags=(Flag("--size", "of it", int, 3),),
                is_resumable=True)
    module = types.SimpleNamespace(
        main=lambda asked: asked.write("one", "is so", ["size"], [[asked.values["size"]]]))
    monkeypatch.setitem(sys.modules, "experiments.fake.part", module)
    return Study("fake", "it is", "sec. 0", (part,))


def written(one):
    return json.loads((one.folder / "records" / "one.json").read_text())


def test_a_record_says_how_it_was_measured(fake, capsys):
    assert study.state(fake, fake.parts[0]).state == "open"
    assert command.main(fake, argv=["--size", "5"]) == 0
    found = written(fake)
    assert (found["rows"], found["commit"], found["is_clean"]) == ([[5]], "abc", True)
    assert found["command"] == "python -m experiments.fake.run"
    assert "is_quick" not in found
    assert "not committed" not in record.table(found)
    assert study.state(fake, fake.parts[0]).state == "recorded"


def test_a_timed_part_records_the_matmul_rate_of_its_process(fake, capsys, monkeypatch):
    rates = {"float32": 205.4e9, "bfloat16": 1.2e12}
    monkeypatch.setattr(hardware, "matmul_peak", lambda dtype: hardware.Peak(rates[dtype], "here"))
    timed = dataclasses.replace(fake, parts=(dataclasses.replace(fake.parts[0], is_timed=True),))
    assert command.main(timed, argv=[]) == 0
    found = written(timed)
    assert found["matmul_gflop_s"] == {"float32": 205, "bfloat16": 1200}
    assert "205 GFLOP/s in float32, 1,200 GFLOP/s in bfloat16" in record.table(found)


def test_a_page_shows_a_record_and_single_numbers_of_it(monkeypatch, tmp_path):
    monkeypatch.setattr(record, "ROOT", tmp_path)
    made = {"columns": ["shape", "form", "ratio"], "rows": [["tiny", "a", "2.5"], ["tiny", "b", 3]],
            "is_clean": True} | record.environment("run")
    (tmp_path / "one.json").write_text(json.dumps(made))
    page = ("<!-- record:one.json -->\nold\n<!-- /record -->\n"
            "| <!-- cell:one.json {} -->9<!-- /cell -->x |")
    shown = record.fill(page.format("tiny a / ratio"))
    assert "| tiny | b | 3 |" in shown
    assert shown.endswith("| <!-- cell:one.json tiny a / ratio -->2.5<!-- /cell -->x |")
    assert record.fill(shown) == shown
    assert "-->3<!--" in record.fill(page.format("* / ratio")), "the largest"
    for named, said in (("tiny / ratio", "2 rows"), ("small / ratio", "0 rows"),
                        ("tiny a / rate", "ratio")):
        with pytest.raises(UserError, match=said):
            record.fill(page.format(named))


def test_a_quick_form_writes_elsewhere_and_shows_its_table(fake, capsys, monkeypatch):
    monkeypatch.setattr(record, "tree", lambda: Tree("abc", ("dsjax/x.py",)))
    left = command.QUICK / "fake" / "part" / "runs" / "of-before"
    left.mkdir(parents=True)
    assert command.main(fake, argv=["--quick"]) == 0
    assert not fake.folder.exists()
    assert not left.exists()
    made = command.QUICK / "fake" / "part" / "records" / "one.json"
    assert json.loads(made.read_text())["is_quick"] is True
    out = capsys.readouterr().out
    assert "| size |" in out
    assert str(made.parents[1]) in out


def test_a_tree_that_is_not_clean_is_refused_or_marked(fake, capsys, monkeypatch):
    changed = Tree("abc", ("dsjax/x.py", "configs/y.py"))
    monkeypatch.setattr(record, "tree", lambda: changed)
    assert command.main(fake, argv=[]) == 2
    assert "dsjax/x.py and 1 more files are not as committed" in capsys.readouterr().err
    assert not fake.folder.exists()
    assert command.main(fake, argv=["--dirty"]) == 0
    found = written(fake)
    assert found["is_clean"] is False
    assert record.table(found).endswith("commit abc with changes that were not committed.")
    assert "with changes that were not committed" in "\n".join(index.lines(fake))


def test_a_tree_that_changes_while_measuring_marks_the_record(fake, monkeypatch):
    trees = iter([Tree("abc", ()), Tree("abc", ("dsjax/x.py",))])
    monkeypatch.setattr(record, "tree", lambda: next(trees))
    assert command.main(fake, argv=[]) == 0
    assert (written(fake)["commit"], written(fake)["is_clean"]) == ("abc", False)


def test_git_tells_what_is_not_as_committed(tmp_path, monkeypatch):
    def git(*words):
        subprocess.run(["git", "-C", str(tmp_path), "-c", "user.name=x", "-c", "user.email=x@y",
                        *words], check=True, capture_output=True)

    monkeypatch.setattr(record, "ROOT", tmp_path)
    (tmp_path / "dsjax").mkdir()
    (tmp_path / "dsjax" / "a.py").write_text("1")
    assert not record.tree().is_clean, "nothing is known without git"
    git("init")
    git("add", ".")
    git("commit", "-m", "x")
    assert record.tree().is_clean
    (tmp_path / "notes.txt").write_text("mine")  # what is not measured may lie about
    (tmp_path / "experiments" / "x" / "records").mkdir(parents=True)
    (tmp_path / "experiments" / "x" / "records" / "one.json").write_text("{}")
    assert record.tree().is_clean
    (tmp_path / "experiments" / "x" / "run.py").write_text("1")
    assert record.tree().changed == ("experiments/x/run.py",)
    (tmp_path / "dsjax" / "a.py").write_text("2")
    assert record.tree().changed == ("dsjax/a.py", "experiments/x/run.py")


def test_the_index_shows_arms_that_are_being_trained(fake):
    run = fake.runs / "tiny-fp8-seed0"
    run.mkdir(parents=True)
    (run / "config.json").write_text('{"train": {"steps": 2000}}')
    (run / "metrics.jsonl").write_text("".join(f'{{"step": {n}}}\n' for n in range(1, 41)) + "{")
    with (fake.runs / "tiny-fp8-seed0.lock").open("w") as lock:
        assert study.state(fake, fake.parts[0]).running == ()
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert study.state(fake, fake.parts[0]).running == (
            "tiny-fp8-seed0, step 40 of 2000",)
    (fake.folder / "records").mkdir(parents=True)
    arm = {"commit": "abc", "date": "2026-01-01", "is_clean": True}
    (fake.folder / "records" / "tiny-fp8-seed0.json").write_text(json.dumps(arm))
    assert study.state(fake, fake.parts[0]).state == "partly"


def test_a_part_goes_on_in_the_background_with_the_same_words(fake, capsys, monkeypatch):
    started = []

    def start(words, **more):
        started.append((words, more))
        return types.SimpleNamespace(pid=7)

    monkeypatch.setattr(subprocess, "Popen", start)
    assert command.main(fake, argv=["--background", "--size", "4"]) == 0
    ((words, more),) = started
    assert words == [sys.executable, "-m", "experiments.fake.run", "part", "--size", "4"]
    assert more["start_new_session"]
    assert not fake.folder.exists()
    assert str(fake.runs / "part.log") in capsys.readouterr().out


def test_a_cheap_part_runs_quickly_and_leaves_the_records(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "QUICK", tmp_path)
    before = kept()
    one = next(s for s in STUDIES if s.name == "pipelines")
    assert command.main(one, argv=["schedules", "--quick"]) == 0
    assert kept() == before
    made = tmp_path / "pipelines" / "schedules"
    assert (made / "records" / "schedules.json").is_file()
    assert (made / "dualpipe.svg").read_text() == (one.folder / "dualpipe.svg").read_text()
    assert "No record of the experiment was touched" in capsys.readouterr().out


FIGURES = sorted(study.ROOM.rglob("*.svg"))


@pytest.mark.parametrize("path", FIGURES, ids=lambda p: p.name)
def test_figures_fit_a_page_with_letters_that_can_be_read(path):
    text = path.read_text()
    width, unit = re.search(r'<svg [^>]*width="([\d.]+)(pt)?"', text, re.DOTALL).groups()
    pixels = float(width) * (96 / 72 if unit else 1)
    shown = min(1, 830 / pixels)  # what a README page leaves of it
    sizes = [float(size) * (96 / 72 if unit else 1)
             for size in re.findall(r'font(?:-size="|: (?:\w+ )?|-size: )([\d.]+)', text)]
    assert sizes, "figures have text"
    assert min(sizes) * shown >= 9
