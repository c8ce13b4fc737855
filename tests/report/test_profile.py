"""A trace of the steps that were asked for lies under the run, and nothing it meets ends a run."""

import dataclasses
import gzip
import io
import json

import pytest

from dsjax.config.fields import profiled
from dsjax.config.flags.commandline import override
from dsjax.config.load import load
from dsjax.config.run import OutputConfig
from dsjax.config.stored import run_from_json
from dsjax.errors import UserError
from dsjax.report.profile import Profiler, chosen
from dsjax.terminal import Console
from dsjax.train import loop
from tests.train import crew
from tests.train.small_run import small_run, write_text


@pytest.mark.parametrize(("text", "done", "steps", "want"), [
    ("3", 0, 600, (3, 5)), ("3", 100, 600, (103, 105)), ("10:13", 0, 600, (10, 13)),
    ("7:7", 0, 600, (7, 7)), ("3", 0, 4, (2, 4)), ("3", 0, 1, (1, 3)), ("1", 0, 2, (2, 2)),
    (None, 0, 9, None),
])
def test_a_number_of_steps_comes_after_the_first_two_or_before_the_end(text, done, steps, want):
    assert chosen(text, done, steps) == want


@pytest.mark.parametrize("text", [
    "0", "-3", "3:", ":3", "0:3", "5:3", "1:2:3", "a", "1.5", "10-13", "\u00b2", "9" * 5000,
    "1 2",
])
def test_what_names_no_steps_is_refused_with_the_two_forms(text):
    with pytest.raises(ValueError, match=r"--output.profile.* names no steps.*10:13"):
        OutputConfig(profile=text)


@pytest.mark.parametrize("flags", [["--profile", "2:3"], ["--profile=2:3"],
                                   ["--output.profile", "2:3"]])
def test_the_flag_is_short(flags):
    assert profiled(override(load("tiny"), flags).output.profile) == (2, 3)
    with pytest.raises(UserError, match="names no steps"):
        override(load("tiny"), ["--profile", "0"])


def test_the_trace_of_a_run_shorter_than_asked_is_there_and_holds_its_steps(tmp_path):
    text = write_text(tmp_path / "words.txt")
    said = io.StringIO()
    run = dataclasses.replace(small_run(tmp_path / "o[u]t", text, steps=4), model=crew.DENSE)
    run = override(run, ["--profile", "3:9", "--output.save-every", "0"])
    loop.train(run, Console(file=said, width=500))
    traces = list((tmp_path / "o[u]t" / "profile").rglob("*.trace.json.gz"))
    assert len(traces) == 1
    assert f"profile of steps 3 to 4: {traces[0]}" in said.getvalue()
    events = json.loads(gzip.decompress(traces[0].read_bytes()))["traceEvents"]
    marks = [e for e in events if e.get("name") == "train"]
    assert sorted(int(e["args"]["step_num"]) for e in marks) == [3, 4]
    assert any("jit_train_step" in str(e) for e in events)
    kept = run_from_json(tmp_path / "o[u]t" / "config.json")
    assert kept.output.profile is None  # the next start does not trace again
    assert dataclasses.replace(kept, output=run.output) == run


def test_steps_that_never_come_are_told_of(tmp_path):
    said = []
    profiler = Profiler((50, 60), tmp_path, said.append)
    with profiler.step(1):
        assert not profiler.took(1, ())
    profiler.close()
    profiler.close()
    later = Profiler((2, 3), tmp_path, said.append)
    with later.step(11):
        later.took(11, ())
    later.close()
    assert len(said) == 2
    assert "ended after step 1, before step 50" in said[0]
    assert "goes on with step 11" in said[1]
    assert not list(tmp_path.iterdir())
