"""Weights that rest in other numbers, on several devices, or under a process that is killed."""

import dataclasses
import os
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from dsjax import params, weights
from dsjax.checkpoint import reader
from dsjax.checkpoint.reader import OnDevices
from dsjax.checkpoint.tuned import held
from dsjax.config.parallel import ParallelConfig
from dsjax.config.run import PrecisionConfig
from dsjax.config.sft import ExpertsConfig, LoRAConfig
from dsjax.model import transformer, tuned
from dsjax.numerics import scaled
from dsjax.numerics.scaled import Scaled
from dsjax.released import hf
from dsjax.report import metrics
from dsjax.runtime import needs
from dsjax.train import sharding
from dsjax.train.tuning import frozen, plan
from tests.released.test_hf import CFG, PARAMS
from tests.train import crew
from tests.train.small_run import numbers
from tests.train.tuning import small_sft
from tests.train.tuning.test_run import learnt


def test_matrices_rest_in_the_codes_that_quantizing_them_whole_gives():
    """Also in boxes that begin within a tile; the rest is bfloat16, a router's bias float32."""
    quantized = held(OnDevices(CFG, PARAMS), "fp8")
    specs, arrays = dict(params.paths(transformer.specs(CFG))), dict(params.paths(PARAMS))
    rng = np.random.default_rng(0)
    for name in ("dense.attn.w_o", "moe.ffn.experts.w_gate_up", "moe.attn.w_uq"):
        shape, _, tile = scaled.resting_shapes(specs[name])
        wanted = scaled.quantize(arrays[name].reshape(shape), tile)
        for part, whole in (("codes", wanted.codes), ("scales", wanted.scales)):
            starts = [int(rng.integers(0, n)) for n in whole.shape]
            box = tuple(slice(i, int(rng.integers(i, n)) + 1)
                        for i, n in zip(starts, whole.shape))
            np.testing.assert_array_equal(quantized.read(f"{name}.{part}", box),
                                          np.asarray(whole)[box])
    assert {name: str(quantized.leaves[name].dtype) for name in (
        "embed", "moe.ffn.router.bias")} == {"embed": "bfloat16", "moe.ffn.router.bias": "float32"}


def test_a_plan_counts_what_the_arrays_hold(base, data, tmp_path):
    """Frozen weights, masters, moments and gradients, to the byte; in each form of the weights."""
    for base_form in ("stored", "bfloat16", "fp8"):
        run = small_sft.configured(base, data, tmp_path, lora=LoRAConfig(rank=2, base=base_form))
        found = plan.count(run, plan.stored_bytes(run))
        p = weights.load_base(run, say=lambda said: None)
        assert found.frozen == sum(a.nbytes for a in jax.tree.leaves(p))
        if base_form != "stored":
            assert found.frozen == plan.form_bytes(run)
        state = frozen.begin(run, frozen.Frozen(p, ""), None, print)
        assert found.masters == sum(a.nbytes for a in jax.tree.leaves(state.params))
        assert found.moments == sum(
            a.nbytes for a in jax.tree.leaves((state.opt.mu, state.opt.nu)))
        assert found.gradients == found.masters
        assert needs.training(run).least <= found.total
    whole = small_sft.configured(base, data, tmp_path)
    state = sharding.abstract(whole, None)
    assert plan.count(whole).masters == sum(
        a.size * a.dtype.itemsize for a in jax.tree.leaves(state.params))
    assert plan.count(whole).frozen == 0


def test_experts_of_a_plan_are_those_that_are_chosen(base, data, tmp_path):
    run = small_sft.configured(base, data, tmp_path, experts=ExpertsConfig(chosen="1:0,3"))
    numbers_of = 2 * 3 * 24 * 9  # two experts of three matrices
    assert plan.count(run, 0).masters == 4 * numbers_of
    assert plan.count(run, 0).moments == 4 * numbers_of  # two of two bytes


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp8"])
@pytest.mark.parametrize("part", [
    {"lora": LoRAConfig(rank=3, targets=("attention", "ffn", "shared_expert", "expert"))},
    {"experts": ExpertsConfig(threshold=0.5)}], ids=["lora", "experts"])
def test_a_released_fp8_base_is_tuned_and_read_merged(part, precision, data, tmp_path):
    """Merged in float32 they are codes' values and what was learnt; the loss falls."""
    base = small_sft.make_base(tmp_path / "fp8", is_fp8=True)
    out = tmp_path / "out"
    run = small_sft.configured(base, data, out, precision=PrecisionConfig(precision), **part)
    small_sft.tune(run)
    p = weights.load_base(run, say=lambda said: None)
    assert isinstance(p.moe.attn.w_o, Scaled)
    losses = [event["loss"] for event in metrics.read_metrics(out / "metrics.jsonl", "train")]
    assert losses[-1] < losses[0]
    kept = frozen.settled(run, out)
    _, state, _ = learnt(kept, out)
    before, after = small_sft.held(base, run.model), small_sft.held(out, run.model)
    specs = dict(params.paths(transformer.specs(run.model)))
    for name, was in before.items():
        if name not in state.params:
            np.testing.assert_array_equal(after[name], was)
        elif kept.lora is not None:
            lead, a, b = specs[name].batch_dims, state.params[name].a, state.params[name].b
            product = a.reshape(*a.shape[:lead], -1, 3) @ b.reshape(*b.shape[: lead + 1], -1)
            wanted = was + kept.lora.scale * product.reshape(was.shape)
            np.testing.assert_allclose(after[name], wanted, atol=1e-5 * np.abs(wanted).max())
        else:
            places = tuned.places(kept)
            for expert in range(6):
                at = places[0, expert]
                wanted = was[0, expert] if at < 0 else state.params[name][0, at]
                np.testing.assert_array_equal(after[name][0, expert], wanted)


@pytest.mark.slow
@pytest.mark.exhaustive
def test_exported_weights_are_the_merged_ones(lora, base, tmp_path):
    from dsjax.cli.main import main

    run, _ = lora
    assert main(["convert", "dsjax-to-hf", str(base.parent / "lora"), str(tmp_path / "hf")]) == 0
    cfg, exported = hf.load(tmp_path / "hf", dtype="float32")
    assert cfg.layers == run.model.layers
    wanted = small_sft.held(base.parent / "lora", run.model)
    for name, a in params.paths(exported):
        np.testing.assert_array_equal(np.asarray(a), wanted[name], err_msg=name)
    assert (tmp_path / "hf" / "tokenizer_config.json").read_text() == \
        (base / "tokenizer_config.json").read_text()


TOLERANCE = 2e-3  # AdamW makes of a gradient's rounding near 0 a step of the rate


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize("layout", [
    ParallelConfig(data=2, fsdp=2, expert=2), ParallelConfig(data=4, expert=1, use_zero=True),
    ParallelConfig(fsdp=2, expert=2)], ids=str)
@pytest.mark.parametrize("part", [
    {"lora": LoRAConfig(rank=4, base="fp8",
                        targets=("attention", "ffn", "shared_expert", "expert"))},
    {"lora": LoRAConfig(rank=4)}, {"experts": ExpertsConfig(threshold=0.5)}, {}],
    ids=["lora_fp8", "lora", "experts", "whole"])
def test_a_run_over_devices_is_the_run_on_one(layout, part, base, data, tmp_path):
    told = []
    for name, own in (("alone", ParallelConfig()), ("meshed", layout)):
        run = small_sft.configured(base, data, tmp_path / name, parallel=own, **part)
        run = dataclasses.replace(run, train=dataclasses.replace(run.train, batch_size=8))
        small_sft.tune(run)
        told.append(metrics.read_metrics(tmp_path / name / "metrics.jsonl"))
        kept = frozen.settled(run, tmp_path / name)
        told[-1].append({"chosen": kept.experts and kept.experts.chosen})
    for one, other in zip(*told, strict=True):
        assert one.get("chosen") == other.get("chosen")
        for name in ("loss", "grad_norm", "nll"):
            if name in one:
                assert other[name] == pytest.approx(one[name], rel=TOLERANCE), name


def start(base, data, folder, *flags):
    env = os.environ | {"JAX_NUM_CPU_DEVICES": "1", "PYTHONPATH": str(crew.ROOT)}
    return subprocess.Popen(
        [sys.executable, "-m", "dsjax", "sft", str(base), "--data", str(data), "--output.folder",
         str(folder), "--train.seq-len", "40", "--train.batch-size", "4", "--output.save-every",
         "1", "--output.keep", "9", "--sft.epochs", "3", *flags],
        env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=crew.ROOT)


def steps(folder):
    path = folder / "metrics.jsonl"
    return path.read_text().count('"kind": "train"') if path.exists() else 0


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize("flags", [("--lora.rank", "3"), ("--experts.threshold", "0.5"), ()],
                         ids=["lora", "experts", "whole"])
def test_killed_at_any_moment_it_goes_on_as_if_it_had_not_been(flags, base, data, tmp_path):
    """Killed before a step is told, after one and after three; then let alone."""
    calm, killed = tmp_path / "calm", tmp_path / "killed"
    process = start(base, data, calm, *flags)
    said, _ = process.communicate(timeout=600)
    assert process.returncode == 0, said
    for wanted in (0, 1, 3):
        process = start(base, data, killed, *flags)
        until = time.monotonic() + 600
        while steps(killed) < wanted or not (killed / "config.json").exists():
            assert process.poll() is None, process.stdout.read()
            assert time.monotonic() < until
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    process = start(base, data, killed, *flags)
    said, _ = process.communicate(timeout=600)
    assert process.returncode == 0, said
    told = [numbers(metrics.read_metrics(folder / "metrics.jsonl")) for folder in (calm, killed)]
    assert told[0] == told[1]
    model = weights.model(calm)
    one, other = (small_sft.held(folder, model) for folder in (calm, killed))
    for name, a in one.items():
        np.testing.assert_array_equal(other[name], a, err_msg=name)


def test_a_view_of_whole_weights_is_what_it_was():
    """`held` as stored gives the weights themselves."""
    there = OnDevices(CFG, PARAMS)
    assert held(there, "stored") is there
    assert reader.as_dtype(there, "stored") is there
