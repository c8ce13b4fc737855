"""The command evaluates what a user names, and refuses in a sentence what cannot be."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dsjax.cli.main import main
from tests.evaluate import small
from tests.evaluate.tasks.golden import DATA

FLAGS = ["--data", str(DATA), "--slots", "2"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return small.make_run(tmp_path_factory.mktemp("small") / "run")


def test_a_table_with_errors_and_chance_and_a_file_of_results(run, capsys):
    assert main(["evaluate", str(run), "--tasks", "arc,mmlu,lambada", *FLAGS]) == 0
    shown = capsys.readouterr()
    rows = {line.split()[0]: line.split() for line in shown.out.splitlines() if line.strip()}
    assert rows["arc"][:3] == ["arc", "4", "acc"]
    assert rows["arc"][-1] == "0.271"  # by chance: a question has three choices
    assert rows["stem"][1] == "6"
    assert "perplexity" in shown.out
    assert str(run / "evaluate" / "results.json") in shown.out
    kept = json.loads((run / "evaluate" / "results.json").read_text())
    assert kept["model"]["step"] == 7
    acc = kept["tasks"]["mmlu"]["measures"]["acc"]
    assert acc["chance"] == 0.25
    assert 0 <= acc["value"] <= 1
    assert set(kept["tasks"]["mmlu"]["groups"]) == {
        "abstract_algebra", "marketing", "college_physics"}
    assert "arc: 4 of 4" in shown.err


def test_json_and_samples_on_a_layout(run, tmp_path, capsys):
    assert main(["evaluate", str(run), "--tasks", "gsm8k", "--out", str(tmp_path / "out"),
                 "--shots", "0", "--limit", "2", "--samples", "2", "--temperature", "1",
                 "--max-new-tokens", "5", "--json", "--parallel.data", "2", *FLAGS]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [*found] == ["gsm8k"]
    assert "exact_match,strict-match cons@2" in found["gsm8k"]["measures"]


def test_a_template_that_refuses_is_a_sentence(run, tmp_path, capsys):
    template = run / "chat_template.jinja"
    template.write_text("{{ raise_exception('no user here') }}")
    try:
        assert main(["evaluate", str(run), "--tasks", "gsm8k", "--out", str(tmp_path / "out"),
                     "--chat", "--limit", "1", *FLAGS]) == 2
    finally:
        template.unlink()
    assert "takes no question" in capsys.readouterr().err


def test_the_preset_is_r1s_protocol(run, tmp_path, capsys):
    pytest.importorskip("math_verify")
    assert main(["evaluate", str(run), "--tasks", "math500", "--out", str(tmp_path / "out"),
                 "--preset", "r1", "--limit", "1", "--samples", "2", *FLAGS]) == 0
    shown = capsys.readouterr()
    assert "math500_boxed" in shown.out
    assert "no chat template" in shown.err
    assert "room for 32 tokens, not 32,768" in shown.err
    settings = json.loads((tmp_path / "out" / "settings.json").read_text())["tasks"]
    assert settings["math500_boxed"]["temperature"] == 0.6
    assert settings["math500_boxed"]["top_p"] == 0.95
    assert settings["math500_boxed"]["samples"] == 2


@pytest.mark.parametrize(("words", "said"), [
    (["--tasks", "arcs"], "no task 'arcs', did you mean arc"),
    (["--tasks", "arc", "--limit", "0"], "--limit 0 must be at least 1"),
    (["--tasks", "arc", "--shots", "-1"], "--shots -1 must be at least 0"),
    (["--tasks", "humaneval"], "humaneval runs programs.*--allow-code"),
    (["--tasks", "mbpp,humaneval"], "mbpp and humaneval run programs"),
    (["--tasks", "arc_easy"], "lacks a file of arc_easy"),
    (["--tasks", "gsm8k", "--samples", "3"], "--samples 3 at temperature 0"),
    (["--tasks", "gsm8k", "--top-p", "0"], "--top-p 0.0 is not a share"),
    (["--tasks", "gsm8k", "--seed", "-1"], "--seed"),
    (["--tasks", "gsm8k", "--chat"], "has no chat template; leave --chat out"),
    (["--tasks", "text", "--context", "1"], "--context 1"),
    ([], "give --tasks"),
])
def test_wrong_words_are_refused(run, words, said, capfd):
    assert main(["evaluate", str(run), *words, *FLAGS, "--out", str(run / "refused")]) == 2
    shown = capfd.readouterr().err.strip().splitlines()
    assert len(shown) == 1
    assert re.search(said, shown[0]), shown


def test_a_folder_without_a_model_is_refused(tmp_path, capfd):
    assert main(["evaluate", str(tmp_path / "none"), "--tasks", "arc", *FLAGS]) == 2
    assert "is not a folder" in capfd.readouterr().err


@pytest.mark.exhaustive
def test_a_killed_process_goes_on_and_ends_as_one_that_was_not(run, tmp_path):
    def command(out):
        return [sys.executable, "-m", "dsjax", "evaluate", str(run), "--tasks", "gsm8k,lambada",
                "--out", str(out), "--samples", "40", "--temperature", "1", "--shots", "0",
                "--max-new-tokens", "20", "--no-cache", *FLAGS]

    root = Path(__file__).parents[2]
    settings = {"cwd": root, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE,
                "env": os.environ | {"PYTHONPATH": str(root)}}
    subprocess.run(command(tmp_path / "whole"), check=True, timeout=300, **settings)
    process = subprocess.Popen(command(tmp_path / "cut"), **settings)
    log = tmp_path / "cut" / "gsm8k.jsonl"
    while not (log.exists() and log.read_text().count("\n")) and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    before = log.read_text()
    done = subprocess.run(command(tmp_path / "cut"), check=True, timeout=300, **settings)
    assert f"gsm8k: {before.count(chr(10))} of 4" in done.stderr.decode()
    for name in ("gsm8k.jsonl", "lambada.jsonl", "results.json", "settings.json"):
        assert (tmp_path / "cut" / name).read_text() == (tmp_path / "whole" / name).read_text()
