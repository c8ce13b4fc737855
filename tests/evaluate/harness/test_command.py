"""The harness's own command knows the model `dsjax`, and refuses bad words in a sentence."""

import json
from pathlib import Path

import pytest

pytest.importorskip("lm_eval", reason="needs pip install '.[lm-eval]'")

from dsjax.evaluate.harness import __main__ as command
from dsjax.evaluate.harness.model import DsjaxLM
from tests.evaluate.harness.asked import CONTEXT, TASK_FILES

WORDS = ["lm_eval", "--model", "dsjax", "--tasks", "local_arc_challenge", "--include_path",
         str(TASK_FILES)]
pytestmark = [pytest.mark.slow,  # it looks through all tasks that the harness brings
              pytest.mark.filterwarnings("ignore")]


def test_the_command_evaluates_and_writes_the_harnesss_files(run, here, monkeypatch, capsys):
    words = [*WORDS, "--model_args", f"folder={run},context={CONTEXT},precision=bf16", "--limit",
             "2", "--output_path", "out", "--log_samples", "--use_cache", "kept"]
    monkeypatch.setattr("sys.argv", words[:])
    assert command.main() == 0
    assert "|local_arc_challenge|" in capsys.readouterr().out
    (results,) = Path("out").rglob("results_*.json")
    config = json.loads(results.read_text())["config"]
    assert config["model"] == "dsjax"
    assert config["model_step"] == 7
    monkeypatch.setattr(DsjaxLM, "_loglikelihood_tokens", None)  # answers were kept
    monkeypatch.setattr("sys.argv", words[:])
    assert command.main() == 0


def test_the_command_refuses_in_a_sentence(here, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", [*WORDS, "--model_args", "folder=nowhere"])
    assert command.main() == 2
    assert "dsjax: nowhere is not a folder" in capsys.readouterr().err


def test_a_missing_file_of_a_task_is_named(run, here, monkeypatch, capsys):
    (here / "data" / "eval" / "arc-challenge-test.jsonl").unlink()
    monkeypatch.setattr("sys.argv", [*WORDS, "--model_args", f"folder={run}"])
    assert command.main() == 2
    assert "arc-challenge-test.jsonl" in capsys.readouterr().err
