"""Metrics are complete, exact and never twice."""

import json
import math
import time

import numpy as np
import pytest

from dsjax.report import metrics
from dsjax.report.metrics import MetricWriter, read_metrics
from tests.reference import moe


def _write(path, steps, **options):
    writer = MetricWriter(path, **options)
    for step in steps:
        writer.write(step, "train", {"loss": 1 / (step + 1)})
    return writer


def test_every_event_is_a_line_of_valid_json_on_disk_at_once(tmp_path):
    writer = _write(tmp_path / "deep" / "metrics.jsonl", [1, 2])
    writer.write(2, "eval", {"bits_per_byte": 2.5})
    lines = (tmp_path / "deep" / "metrics.jsonl").read_text().splitlines()  # before close
    assert [json.loads(x)["kind"] for x in lines] == ["train", "train", "eval"]
    event = json.loads(lines[2])
    assert event.pop("time") == pytest.approx(time.time(), abs=60)
    assert event == {"step": 2, "kind": "eval", "bits_per_byte": 2.5}
    writer.close()


def test_a_float32_survives_to_the_bit_in_few_digits(tmp_path):
    values = np.array([0.1, 1 / 3, 1e-30, 2.2e-4, 123456.789], np.float32)
    writer = MetricWriter(tmp_path / "m.jsonl")
    writer.write(1, "train", {"x": values, "one": values[0], "n": np.int32(7)})
    writer.close()
    event = read_metrics(tmp_path / "m.jsonl")[0]
    np.testing.assert_array_equal(np.array(event["x"], np.float32), values)
    assert '"one": 0.1,' in (tmp_path / "m.jsonl").read_text()
    assert event["n"] == 7


def test_numbers_that_are_not_finite_become_null(tmp_path):
    writer = MetricWriter(tmp_path / "m.jsonl")
    writer.write(1, "train", {"a": math.nan, "b": np.float32(np.inf), "c": np.array([1, np.nan])})
    writer.close()
    event = read_metrics(tmp_path / "m.jsonl")[0]
    assert (event["a"], event["b"], event["c"]) == (None, None, [1.0, None])


def test_a_resumed_file_holds_no_step_twice_and_no_torn_line(tmp_path):
    path = tmp_path / "m.jsonl"
    _write(path, range(1, 8)).close()
    with path.open("a") as file:
        file.write('{"step": 3, "kind": "tr')  # killed in the middle of a write
    _write(path, range(5, 9), resume_step=4).close()
    steps = [json.loads(line)["step"] for line in path.read_text().splitlines()]
    assert steps == list(range(1, 9))


def test_a_run_that_goes_on_has_no_end_yet(tmp_path):
    """Killed after its last evaluation was written, or given more steps: it writes another."""
    writer = MetricWriter(tmp_path / "m.jsonl")
    writer.write(5, "train", {"loss": 2.0})
    writer.write(5, "final", {"nll": 1.0})
    writer.close()
    MetricWriter(tmp_path / "m.jsonl", resume_step=5).close()
    assert [e["kind"] for e in read_metrics(tmp_path / "m.jsonl")] == ["train"]


def test_a_new_run_does_not_inherit_the_lines_of_an_old_one(tmp_path):
    _write(tmp_path / "m.jsonl", range(1, 8)).close()
    _write(tmp_path / "m.jsonl", [1]).close()
    assert [e["step"] for e in read_metrics(tmp_path / "m.jsonl")] == [1]


def test_an_event_written_twice_is_read_once_as_last_written(tmp_path):
    writer = _write(tmp_path / "m.jsonl", [1, 2])
    writer.write(1, "train", {"loss": 9.0})
    writer.write(2, "eval", {"loss": 8.0})
    writer.close()
    events = read_metrics(tmp_path / "m.jsonl", "train")
    assert [(e["step"], e["loss"]) for e in events] == [(1, 9.0), (2, pytest.approx(1 / 3))]
    assert len(read_metrics(tmp_path / "m.jsonl")) == 3


def test_tensorboard_gets_scalars_curves_by_layer_and_histograms_of_loads(tmp_path):
    writer = _write(tmp_path / "m.jsonl", [1, 2], tensorboard=tmp_path / "board",
                    labels=["layer 1", "MTP 1"])
    writer.write(3, "train", {"loss": math.nan, "max_vio_by_layer": np.array([0.5, np.nan, 2.0])})
    writer.write(3, "eval", {"loads": np.array([[1, 2, 0], [3, 0, 4]], np.float32)})
    uneven = np.array([[1, np.nan], [3, 0]], np.float32)
    writer.write(4, "eval", {"loads": uneven, "a": [], "b": [[]]})
    writer.close()
    data = b"".join(p.read_bytes() for p in (tmp_path / "board").iterdir())
    assert data.count(b"train/loss") == 2
    assert data.count(b"train/max_vio_by_layer/layer_1") == 1
    assert b"train/max_vio_by_layer/MTP_1" not in data  # not a number
    assert data.count(b"train/max_vio_by_layer/2") == 1
    assert data.count(b"eval/loads/layer_1") == 1
    assert data.count(b"eval/loads/MTP_1") == 2
    assert b"time" not in data  # the board has its own


def test_names_of_older_files_are_read_as_the_present_ones(tmp_path):
    lines = [
        {"step": 1, "kind": "train", "loss": 9.5, "next_token": 8.5, "rate": 0.1},
        {"step": 2, "kind": "train", "loss": 7.5, "total_loss": 8.0, "rate": 0.1},
        {"step": 3, "kind": "train", "loss": 6.5, "total_loss": 7.0, "learning_rate": 0.1},
        {"step": 3, "kind": "final", "nats": 2.5, "mtp_nats": 3.5, "heldout_tokens": 7},
    ]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(e) + "\n" for e in lines))
    *steps, final = read_metrics(tmp_path / "m.jsonl")
    assert [(e["loss"], e["total_loss"], e["learning_rate"]) for e in steps] == [
        (8.5, 9.5, 0.1), (7.5, 8.0, 0.1), (6.5, 7.0, 0.1)]
    assert (final["nll"], final["mtp_nll"], final["heldout_tokens"]) == (2.5, 3.5, 7)
    assert not metrics.EARLIER.keys() & {name for e in (*steps, final) for name in e}


def test_maxvio_is_the_largest_excess_over_the_mean_and_dead_experts_are_counted():
    loads = np.array([[3, 0, 1, 4, 2], [2, 2, 2, 2, 2], [0, 0, 10, 0, 0]], np.float32)
    np.testing.assert_allclose(metrics.max_violation(loads), [1.0, 0.0, 4.0])
    assert metrics.max_violation(loads[:1])[0] == moe.max_violation(loads[0])
    assert metrics.dead_experts(loads) == 5
    np.testing.assert_array_equal(metrics.max_violation(np.zeros((2, 3))), [0, 0])
