"""A plan of the machine at hand follows from its rates and its memory, and its command says so."""

import dataclasses
import json

import pytest

from dsjax.cli.main import main
from dsjax.config.load import load
from dsjax.config.run import with_fields
from dsjax.plan import here
from dsjax.plan.cost.site import Site
from dsjax.runtime.hardware import Chip, Fabric

RUN = with_fields(load("tiny"), precision={"matmul": "fp32"})


def machine(memory, wide=1e12, bandwidth=10**11):
    chip = Chip("cpu", ("cpu",), memory, wide, None, "measured", bandwidth=bandwidth, wide=wide,
                fabric=Fabric(bandwidth, 1, bandwidth, "one device"))
    return Site("cpu", 1, chip)


def test_twice_the_rates_are_half_the_time_of_what_they_bound():
    """Products and scores by the rate of products, the rest by the memory's; nothing else."""
    slow, fast, wide = (here.choose(RUN, machine(10**12, *rates)).estimate
                        for rates in ((1e12, 10**11), (2e12, 2 * 10**11), (2e12, 10**11)))
    assert fast.step == pytest.approx(slow.step / 2, rel=1e-6)
    assert wide.products == pytest.approx(slow.products / 2)
    assert wide.memory == pytest.approx(slow.memory)
    assert slow.overhead == slow.links == 0


def test_less_memory_means_fewer_rows_at_once_then_recomputation_then_no_plan():
    whole = here.choose(RUN, machine(10**12))
    assert (whole.rows, whole.run.machine.remat) == (RUN.train.batch_size, "none")
    less = here.choose(RUN, machine(whole.needed - 1))
    assert less.needed < whole.needed
    assert less.estimate.step > whole.estimate.step
    assert (less.rows, less.run.machine.remat) != (whole.rows, "none")
    smallest = here.choose(RUN, machine(10**6))
    assert smallest.estimate is None
    assert smallest.needed > 10**6
    assert smallest.rows == 1


def test_days_are_those_of_the_tokens_at_the_steps_rate():
    made = here.choose(RUN, machine(10**12), tokens=1e9)
    rate = made.estimate.tokens / made.estimate.step
    assert made.days == pytest.approx(1e9 / rate / 86400)


def test_float32_streams_move_twice_the_bytes_of_bfloat16():
    """Between products; weights and gradients are the same, so the whole is less than twice."""
    narrow = dataclasses.replace(RUN, precision=dataclasses.replace(
        RUN.precision, activations="bfloat16"))
    one, two = (here.choose(run, machine(10**12)).estimate.memory for run in (narrow, RUN))
    assert 1.5 * one < two < 2 * one


def test_the_command_measures_and_says_what_fits(capsys, monkeypatch):
    monkeypatch.setattr(here, "measure", lambda: machine(3 * 10**9))
    assert main(["plan", "--here", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    found = {one["config"]: one for one in said["configs"]}
    assert found["tiny"]["fits"]
    assert found["tiny"]["precision"] == "fp32"
    assert not found["deepseek_v3"]["fits"]
    assert "r1_zero_tiny" not in found  # learns from rewards
    assert main(["plan", "--here", "--config", "deepseek_v3"]) == 1
    assert "does not fit" in capsys.readouterr().out
    assert main(["plan", "--here", "--config", "r1_zero_tiny"]) == 2
    assert "learns from rewards" in capsys.readouterr().err


def test_a_device_is_measured(monkeypatch):
    """Rates are positive and finite, and what is free is some of what a machine has."""
    monkeypatch.setattr(here, "SIDES", {"cpu": 64})
    monkeypatch.setattr(here, "STREAM", {"cpu": 2**16})
    found = here.measure(budget_s=0.01)
    assert 10**6 < found.bandwidth < 10**14
    assert 10**6 < found.chip.wide <= found.chip.bf16 < 10**17
    assert 10**6 < found.chip.memory < 10**14
