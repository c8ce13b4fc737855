"""One quantity has one name wherever it is told; a run tells its size, its text and its pace."""

import dataclasses
import io
import itertools
import json

import pytest

from dsjax.data import curriculum
from dsjax.model import count
from dsjax.runtime import hardware
from dsjax.terminal import Console
from dsjax.train import loop, step_report
from tests.train.small_run import small_run, write_text


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    """A run of 5 steps with an evaluation after each and a save after every other."""
    folder = tmp_path_factory.mktemp("short")
    run = small_run(folder / "out", write_text(folder / "words.txt"), steps=5)
    output = dataclasses.replace(run.output, eval_every=1, save_every=2, tensorboard=True)
    run = dataclasses.replace(run, output=output)
    said = io.StringIO()
    loop.train(run, Console(file=said, width=300))
    lines = (folder / "out" / "metrics.jsonl").read_text().splitlines()
    return run, [json.loads(line) for line in lines], said.getvalue(), folder / "out"


def test_a_step_says_its_time_tokens_pace_rate_and_loads(short):
    run, events, _, out = short
    train = [e for e in events if e["kind"] == "train"]
    assert [e["step"] for e in train] == [1, 2, 3, 4, 5]
    assert [e["tokens"] for e in train] == [64, 128, 192, 256, 320]
    assert all(a["time"] <= b["time"] for a, b in itertools.pairwise(events))
    for e in train:
        assert e["loss"] < e["total_loss"] < e["loss"] + e["mtp_loss"]
        assert len(e["max_vio_by_layer"]) == len(step_report.layer_labels(run)) == 2
        assert max(e["max_vio_by_layer"]) == e["max_vio"]
    assert ["tok_s" in e for e in train] == [False, False, True, True, True]  # two were timed
    assert all(0 < e["mfu"] <= 1 for e in train if "mfu" in e)
    board = b"".join(p.read_bytes() for p in (out / "tensorboard").iterdir())
    for name in ("train/tokens", "train/tok_s", "train/learning_rate", "train/loss",
                 "train/total_loss", "train/max_vio_by_layer/layer_1", "eval/loads/MTP_1"):
        assert name.encode() in board


def test_the_loss_shown_is_the_loss_written(short):
    _, events, said, _ = short
    line = next(line for line in said.splitlines() if line.startswith("step 2/5"))
    assert f"loss {events[2]['loss']:.3f}" in line
    assert "tok/s" not in line
    assert "total loss" not in said


def test_the_header_says_parameters_tokens_corpus_and_epochs(short):
    run, _, said, _ = short
    sizes = count.count(run.model)
    assert f"{sizes.params_total:,}, {sizes.params_active:,} active" in said
    assert "4 rows of 16 tokens: 64 tokens" in said
    found = next(line for line in said.splitlines() if line.startswith("corpus: "))
    assert "5 steps read 320," in found
    assert "epochs" in found


def test_no_share_of_a_peak_is_told_where_there_is_none():
    run = small_run("out", "text")
    speed = loop.pace.Throughput()
    assert step_report.pace(run, speed, hardware.Peak(1e9, "")) == {}
    for ended in (2.0, 4.0):
        speed.tick(100, 0.0, ended, flops=1e9)
    assert step_report.pace(run, speed, hardware.Peak(1e9, "")) == {"tok_s": 50.0, "mfu": 0.5}
    assert step_report.pace(run, speed, None) == {"tok_s": 50.0}


def test_the_tokens_of_a_ramp_are_counted_once(monkeypatch):
    run = small_run("out", "text")
    ramp = dataclasses.replace(run.train, steps=9, batch_size_start=2, batch_size_ramp_steps=0.5)
    rows = [curriculum.rows_of(ramp, step) for step in range(12)]
    assert [curriculum.tokens_after(ramp, n) for n in range(13)] == [
        16 * sum(rows[:n]) for n in range(13)]
