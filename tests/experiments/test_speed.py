"""A speed is told with the machine it was reached on: its processor, and the matmul rates of each
library in the same run.
"""

import platform
import time

import pytest

from experiments.common import machines, record
from experiments.speed import fp8, peer_transformers, training

CPUINFO = """processor\t: 0
vendor_id\t: AuthenticAMD
cpu family\t: 25
model\t\t: 17
model name\t: AMD EPYC   9B14

processor\t: 1
model name\t: another
"""


@pytest.mark.parametrize(("text", "name"), [
    (CPUINFO, "AMD EPYC 9B14 (family 25, model 17)"),
    ("model name : Xeon\n", "Xeon"),
    ("CPU part : 0xd40\n", platform.processor() or platform.machine()),
    (None, platform.processor() or platform.machine()),
])
def test_a_processor_is_named_with_its_family_and_model(text, name, tmp_path):
    path = tmp_path / "cpuinfo"
    if text is not None:
        path.write_text(text)
    assert machines.processor(path) == name


def test_a_record_names_the_processor_and_its_table_shows_it(monkeypatch):
    monkeypatch.setattr(machines, "processor", lambda: "Abacus (family 1)")
    made = {"columns": ["x"], "rows": [[1]]} | record.environment("run")
    assert made["processor"] == "Abacus (family 1)"
    assert f"on {made['device']}, Abacus (family 1), jax" in record.table(made)
    del made["processor"]
    assert f"on {made['device']}, jax" in record.table(made)


def measured(tok_s, peak, **more):
    return {"tok_s": tok_s, "peak_gflop_s": peak, "peak_rss_mib": 100, "compile_s": 3.0} | more


def test_training_speed_stands_beside_what_both_libraries_reach_of_the_machine():
    rounds = [{"peer": measured(500, 210.0),
               "float32": measured(tok_s, 205.0, mfu=0.586),
               "bfloat16": measured(800, 400.0, mfu=0.43)} for tok_s in (520, 560, 540)]
    rows = [dict(zip(training.COLUMNS, row, strict=True))
            for row in training.summary("tiny", rounds)]
    assert [row["ratio"] for row in rows] == ["1.08", "1.60"]
    assert rows[0]["min to max"] == "1.04 to 1.12"
    assert [row["of the matmul rate"] for row in rows] == ["59%", "43%"]
    assert [row["matmul GFLOP/s"] for row in rows] == ["205", "400"]
    assert [row["peer's, float32"] for row in rows] == ["210", "210"]


def test_the_cost_of_fp8_stands_beside_the_matmul_rates():
    rounds = [{"bfloat16": {"ms_median": 10, "peak_gflop_s": 400.4},
               "fp8": {"ms_median": 13, "peak_gflop_s": 1.0},
               "float32": {"ms_median": 20, "peak_gflop_s": 205.0}}]
    row = fp8.summary("tiny", rounds)
    assert row[4:] == ["1.30", "1.30 to 1.30", "0.65", "0.65 to 0.65", "400", "205"]


def test_the_peer_times_the_fastest_of_its_products(monkeypatch):
    now = [0.0]
    took = iter([9.0, 0.02, 0.01, 0.05, 0.4])  # the first is not counted
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def product():
        now[0] += next(took)

    assert peer_transformers.matmul_rate(product, 1000) == pytest.approx(2e9 / 0.01 / 1e9)
    assert next(took, None) is None, "it ends when the time is over"
