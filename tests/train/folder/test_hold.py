"""One run, one writer: nothing is touched by a second start, nor by one with nothing to do."""

import dataclasses
import io
import json
import shutil
from pathlib import Path

import pytest
from rich.console import Console

from dsjax import disk
from dsjax.checkpoint import files
from dsjax.config.parallel import ParallelConfig
from dsjax.errors import UserError
from dsjax.report.metrics import read_metrics
from dsjax.train import loop
from dsjax.train.folder import resume
from tests.train import crew


def changed(run, part, **fields):
    return dataclasses.replace(run, **{part: dataclasses.replace(getattr(run, part), **fields)})


def content(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {str(p): (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.rglob("*")
            if p.is_file() and p.name != disk.LOCK}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of two steps that is finished."""
    folder = tmp_path_factory.mktemp("finished")
    run = crew.run_on(folder, "run", ParallelConfig(), 2, crew.DENSE)
    crew.here(run)
    return run


def test_a_second_start_is_refused_with_the_holder_before_anything_is_touched(run):
    out = Path(run.output.folder)
    before = content(out)
    longer = crew.lasting(run, 4)
    with disk.held(out, "wait"), pytest.raises(UserError, match=r"by process \d+ on"):
        crew.here(longer)
    assert content(out) == before


def test_a_finished_run_says_so_and_keeps_everything_as_it_was(run):
    out = Path(run.output.folder)
    before = content(out)
    said = io.StringIO()
    other = changed(changed(run, "learning_rate", peak=1.0), "train", microbatches=2)
    outcome = loop.train(other, Console(file=said, width=300))
    assert "finished after step 2: there is nothing to do" in said.getvalue()
    assert outcome.was_finished
    final = read_metrics(out / "metrics.jsonl", "final")[0]
    assert outcome.heldout.bits_per_byte == final["bits_per_byte"]
    assert outcome.heldout.targets == final["heldout_tokens"]
    assert content(out) == before


def test_fewer_steps_than_the_checkpoint_are_refused_before_anything_is_touched(run, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(run.output.folder, out)
    shorter = changed(crew.lasting(run, 1), "output", folder=str(out))
    assert f"{out} holds this run at step 2, past --train.steps 1: there is nothing to do" in (
        crew.here(shorter))
    lines = (out / "metrics.jsonl").read_text().splitlines(keepends=True)
    (out / "metrics.jsonl").write_text("".join(line for line in lines if "final" not in line))
    before = content(out)
    with pytest.raises(UserError, match=r"--train.steps 1 is below checkpoint 2.* at least 2, or"):
        crew.here(shorter)
    assert content(out) == before


def test_a_finished_run_whose_checkpoint_is_damaged_goes_on_or_is_refused(run, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(run.output.folder, out)
    here = changed(run, "output", folder=str(out))
    for path in (out / "checkpoints").rglob("arrays/**/*"):
        if path.is_file() and path.stat().st_size:
            data = path.read_bytes()
            path.write_bytes(bytes([data[0] ^ 1]) + data[1:])
    with pytest.raises(UserError, match=r"no checkpoint in .* can be read .*is not what was"):
        crew.here(here)
    assert not resume.is_finished(here, out)


def test_an_average_that_has_not_moved_is_not_told_of(run, tmp_path):
    for every, is_told in ((3, False), (2, True)):
        out = tmp_path / str(every)
        here = changed(changed(run, "output", folder=str(out)), "optimizer", ema_decay=0.9,
                       ema_every=every)
        outcome = loop.train(here, Console(file=io.StringIO()))
        final = read_metrics(out / "metrics.jsonl", "final")[0]
        assert ("bits_per_byte_average" in final) == is_told
        assert (outcome.heldout_average is not None) == is_told


def test_a_run_without_its_last_evaluation_or_checkpoint_is_not_finished(run, tmp_path):
    out = Path(run.output.folder)
    assert resume.final_event(run, out)["step"] == 2
    assert resume.final_event(crew.lasting(run, 3), out) is None
    copy = tmp_path / "copy"
    disk.make_folder(copy, "")
    for path in out.rglob("*"):
        if path.is_file():
            disk.make_folder((copy / path.relative_to(out)).parent, "")
            (copy / path.relative_to(out)).write_bytes(path.read_bytes())
    assert resume.final_event(run, copy)["step"] == 2
    largest = max(copy.rglob("step-*/arrays/**/*"), key=lambda p: p.is_file() and p.stat().st_size)
    whole = largest.read_bytes()
    largest.write_bytes(whole[:-1])
    assert resume.final_event(run, copy) is None
    largest.write_bytes(whole)
    lines = (copy / "metrics.jsonl").read_text().splitlines(keepends=True)
    (copy / "metrics.jsonl").write_text("".join(lines[:-1]))
    assert resume.final_event(run, copy) is None


def test_more_steps_go_on_and_what_is_another_is_said_and_kept(run):
    more = changed(changed(crew.lasting(run, 3), "learning_rate", peak=1e-3), "output", keep=2)
    said = crew.here(more)
    for words in ("train.steps 2 -> 3 from step 2 on", "rate.peak 0.003 -> 0.001 from step 2 on",
                  "output.keep 3 -> 2 from step 2 on"):
        assert words in said
    out = Path(run.output.folder)
    assert json.loads((out / "config.json").read_text())["learning_rate"]["peak"] == 1e-3
    assert [e["step"] for e in read_metrics(out / "metrics.jsonl", "train")] == [1, 2, 3]
    assert [e["step"] for e in read_metrics(out / "metrics.jsonl", "final")] == [3]


@pytest.mark.parametrize(("fields", "words"), [
    ({"data": {"train": "gone.txt"}}, "gone.txt does not exist"),
    ({"data": {"heldout": "gone.txt"}}, "gone.txt does not exist"),
    ({"data": {"heldout_fraction": 0.0}}, "--data.heldout-fraction 0 leaves nothing"),
    ({"data": {"tokenizer": "gone.json"}}, "gone.json is missing"),
    ({"model": {"vocab": 100}}, "--model.vocab 100 is below the 260"),
    ({"init_from": "."}, "--init-from . holds no weights"),
    ({"data": {"fim_rate": 0.5}, "output": {}}, "made with data.fim_rate=0.0, not 0.5"),
])
def test_what_can_be_refused_without_the_text_is_refused_before_the_header(
        fields, words, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for part, changes in ({"output": {"folder": "new"}} | fields).items():
        run = (changed(run, part, **changes) if isinstance(changes, dict)
               else dataclasses.replace(run, **{part: changes}))
    said = io.StringIO()
    with pytest.raises(UserError) as raised:
        loop.train(run, Console(file=said))
    assert words in str(raised.value)
    assert said.getvalue() == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("damage", "words"), [
    ("another model", "is of another model: embed is"), ("cut off", "bytes of"),
])
def test_a_start_that_does_not_fit_is_refused_before_the_header(
        damage, words, run, tmp_path, monkeypatch):
    start = tmp_path / "start"
    shutil.copytree(run.output.folder, start)
    new = dataclasses.replace(changed(run, "output", folder="new"), init_from=str(start))
    if damage == "another model":
        new = changed(new, "model", d_model=2 * run.model.d_model)
    else:
        for path in start.rglob("checkpoints/**/d/*"):
            path.write_bytes(path.read_bytes()[:-1])
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    said = io.StringIO()
    with pytest.raises(UserError, match=words):
        loop.train(new, Console(file=said))
    assert said.getvalue() == ""
    assert list(Path().iterdir()) == []


class Leaving(io.StringIO):
    """A reader that leaves after the first step."""

    def write(self, text):
        if " 2/" in self.getvalue() + text:
            raise BrokenPipeError(32, "Broken pipe")
        return super().write(text)


def test_a_run_whose_reader_leaves_saves_and_then_leaves(run, tmp_path, capsys):
    run = changed(crew.lasting(run, 50), "output", folder=str(tmp_path / "run"), log_every=1)
    with pytest.raises(BrokenPipeError):
        loop.train(run, Console(file=Leaving()))
    [step] = files.steps(tmp_path / "run" / "checkpoints")
    assert 2 <= step < 10
    assert f"saved after step {step}; the same command" in capsys.readouterr().err
    assert f"resuming after step {step}" in crew.here(crew.lasting(run, step + 1))


def test_input_that_is_refused_leaves_no_folder(run, tmp_path):
    out = tmp_path / "new" / "deep"
    wrong = changed(run, "output", folder=str(out))
    wrong = changed(wrong, "data", train=str(tmp_path / "none.txt"))
    with pytest.raises(UserError, match=r"none.txt"):
        crew.here(wrong)
    assert list(tmp_path.iterdir()) == []
    out.mkdir(parents=True)  # a folder that was there stays
    with pytest.raises(UserError, match=r"none.txt"):
        crew.here(wrong)
    assert out.is_dir()


@pytest.mark.parametrize("kind", ["file", "dead link"])
def test_checkpoints_that_cannot_be_are_refused_before_any_work(kind, run, tmp_path):
    checkpoints = tmp_path / "checkpoints"
    if kind == "file":
        checkpoints.write_text("not a folder")
    else:
        checkpoints.symlink_to(tmp_path / "gone" / "away")
    with pytest.raises(UserError, match=r"checkpoints (is a file|is a link to|cannot be made)"):
        crew.here(changed(run, "output", folder=str(tmp_path)))
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoints"]


@pytest.mark.slow
@pytest.mark.exhaustive  # a refusal reaches every process in test_faults.py
def test_the_refusal_reaches_every_process(tmp_path):
    run = crew.run_on(tmp_path, "run", ParallelConfig(data=2), 2, crew.DENSE)
    out = Path(run.output.folder)
    out.mkdir()
    with disk.held(out, "wait"):
        processes = crew.start(run, 2)
        try:
            said = [p.communicate(timeout=120)[0] for p in processes]
        finally:
            crew.end(processes)
    assert [p.returncode for p in processes] == [2, 2], said
    for words in said:
        assert "is being written by process" in words
        assert "Traceback" not in words
    assert [p.name for p in out.iterdir()] == [disk.LOCK]
