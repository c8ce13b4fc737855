"""Folders that the first version wrote (commit 0273670) are read, gone on from and generated with.

`folders_of_0273670.tar.gz` holds a trained run with an average, the released checkpoint made of it,
a run converted from that (zarr arrays in the frame of an orbax checkpoint), and what that version
said when it went on from there.
"""

import dataclasses
import io
import json
import tarfile
from pathlib import Path

import jax
import numpy as np
import pytest
from rich.console import Console

from dsjax import weights
from dsjax.cli import main
from dsjax.config.stored import run_from_json
from dsjax.report.metrics import read_metrics
from dsjax.train import loop

FOLDERS = Path(__file__).with_name("folders_of_0273670.tar.gz")


@pytest.fixture
def old(tmp_path, monkeypatch):
    """The folder that holds the old ones, which is where they were made."""
    with tarfile.open(FOLDERS) as packed:
        packed.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_weights_of_old_folders_are_one_anothers(old):
    run, converted, released = (
        weights.load(old / name, "float32", say=lambda sentence: None)
        for name in ("old", "converted", "released"))
    for a, b, c in zip(*map(jax.tree.leaves, (run, converted, released)), strict=True):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(a, c)
    average = weights.load(old / "old", choice=weights.Choice(which="ema"))
    assert float(abs(average.embed - run.embed).max()) > 0


def test_an_old_run_goes_on_to_the_losses_of_its_time(old):
    expected = json.loads((old / "expected.json").read_text())
    run = run_from_json(old / "old" / "config.json")
    more = dataclasses.replace(run, train=dataclasses.replace(run.train, steps=6))
    loop.train(more, Console(file=io.StringIO()))
    losses = {e["step"]: e["loss"] for e in read_metrics(old / "old" / "metrics.jsonl", "train")}
    for step, loss in expected["next_token"].items():
        assert losses[int(step)] == pytest.approx(loss, rel=1e-6)


def test_an_old_run_says_what_it_said(old, capsys):
    flags = ["--prompt", "the ship", "--temperature", "0", "--json"]
    assert main.main(["generate", "old", *flags, "--max-new-tokens", "12"]) == 0
    said = json.loads(capsys.readouterr().out)["completions"][0]["text"]
    assert said == json.loads((old / "expected.json").read_text())["text"]
