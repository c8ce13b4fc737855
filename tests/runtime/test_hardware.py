"""One table of chips; a run's share of the peak is of the operands that its products read."""

import jax
import pytest

from dsjax.kernels import hopper
from dsjax.runtime import hardware
from dsjax.runtime.hardware import CHIPS, Chip


def test_the_peak_is_looked_up_by_chip_and_measured_where_the_table_has_none(monkeypatch):
    here = hardware.matmul_peak("float32", budget_s=0.02)
    assert "measured" in here.source
    assert 1e8 < here.flop_s < 1e14
    for fp8 in (None, 200e12):
        chip = Chip("cuda", (jax.devices()[0].device_kind,), 1, 100e12, fp8, "a test")
        monkeypatch.setitem(hardware.CHIPS, "here", chip)
        assert hardware.matmul_peak("bfloat16").flop_s == 100e12
        assert hardware.matmul_peak("float8").flop_s == (fp8 or 100e12)
    assert "measured" in hardware.matmul_peak("float32", budget_s=0.02).source
    assert hardware.Peak(100e12, "").share(150e12, devices=3) == pytest.approx(0.5)


def test_a_cpu_without_bfloat16_has_the_peak_of_float32(monkeypatch):
    monkeypatch.setattr(hardware, "measure_matmul",
                        lambda size, dtype, budget_s: {"float32": 9e9, "bfloat16": 4e9}[dtype])
    assert hardware.matmul_peak("bfloat16").flop_s == 9e9
    assert "float32" in hardware.matmul_peak("float8").source


def test_a_device_has_one_entry_and_kernels_know_its_multiprocessors():
    kinds = [kind for chip in CHIPS.values() for kind in chip.device_kinds]
    assert len(kinds) == len(set(kinds))
    assert hardware.chip_of("NVIDIA H100 80GB HBM3") is CHIPS["h100"]
    assert hardware.chip_of("a toaster") is None
    assert CHIPS["h100"].multiprocessors == CHIPS["h200"].multiprocessors == hopper.MULTIPROCESSORS
