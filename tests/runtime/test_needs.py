"""Bytes counted before compiling are exact where they can be, and never more than is asked for."""

import importlib
import json

import jax
import jax.numpy as jnp
import pytest

from dsjax.cli.main import main
from dsjax.config import load
from dsjax.config.machine import MachineConfig
from dsjax.config.model import GQAConfig, MLAConfig, ModelConfig, MoEConfig
from dsjax.config.run import OptimizerConfig, PrecisionConfig, RunConfig, TrainConfig
from dsjax.model.loss import from_rows
from dsjax.runtime import backend as backends
from dsjax.runtime import needs
from dsjax.train import sharding

MODEL = ModelConfig(vocab=300, d_model=32, layers=3, dense_layers=1, dense_dim=64, mtp_depth=1,
                    attention=MLAConfig(heads=2, q_rank=16, kv_rank=16, nope_dim=8, rope_dim=8,
                                        value_dim=8),
                    moe=MoEConfig(experts=4, experts_per_token=2, expert_dim=16))
DENSE = ModelConfig(vocab=40, d_model=64, layers=4, dense_layers=4, dense_dim=48,
                    attention=GQAConfig(heads=4, kv_heads=2, head_dim=16))
RUNS = {
    "everything kept": RunConfig("kept", DENSE, TrainConfig(batch_size=16, seq_len=128)),
    "parts of a batch, all made again": RunConfig(
        "full", DENSE, TrainConfig(batch_size=32, seq_len=64, microbatches=2),
        optimizer=OptimizerConfig(moments="float32"), machine=MachineConfig(remat="full")),
    "experts and MTP, V3's policy": RunConfig(
        "v3", MODEL, TrainConfig(batch_size=32, seq_len=64),
        precision=PrecisionConfig(matmul="bf16", activations="bfloat16"),
        machine=MachineConfig(remat="v3")),
}


@pytest.mark.parametrize("name", [
    list(RUNS)[1], *(pytest.param(name, marks=pytest.mark.exhaustive) for name in list(RUNS)[::2])])
def test_what_is_counted_is_less_than_what_the_compiler_asks_for_and_not_much(name):
    """At most five times less: that much are a layer's temporaries at these sizes."""
    run = RUNS[name]
    backend = backends.for_run(run)
    shape = (run.train.batch_size, run.train.seq_len + 1)
    dtypes = {"tokens": jnp.int32, "segments": jnp.int32, "weights": jnp.float32}
    batch = from_rows({key: jax.ShapeDtypeStruct(shape, d) for key, d in dtypes.items()})
    state = sharding.abstract(run, None)
    step = sharding.compile_step(run, backend, None).lower(state, batch)
    found = step.compile({"xla_backend_optimization_level": 0,
                          "xla_llvm_disable_expensive_passes": True}).memory_analysis()
    asked = (found.argument_size_in_bytes + found.temp_size_in_bytes
             + found.output_size_in_bytes - found.alias_size_in_bytes)
    counted = needs.training(run)
    assert asked / 5 < counted.least < asked
    held = counted.masters + counted.moments + counted.batch
    rest = 4 * 4  # step, skipped, skipped_in_row and AdamW's count
    assert found.argument_size_in_bytes == held + rest


def model(name):
    return importlib.import_module(f"configs.{name}").config()


def test_v3_by_hand(capsys):
    main_numbers, mtp_numbers, cached = 671_026_419_200, 11_610_068_224, 61 * (512 + 64)
    run = model("deepseek_v3")
    found = needs.training(run)
    assert found.masters == 4 * (main_numbers + mtp_numbers)
    assert found.gradients == found.masters - 4 * 59 * 256  # biases follow the balance rule
    assert found.moments == found.gradients
    assert found.average == 0
    assert found.batch == 15_360 * 4_097 * 12
    assert found.logits == 15_360 * 128 * 129_280 * 4
    # V3's policy in bfloat16: before and after attention, heads, latents (1536 + 512 + 64); SwiGLU
    # inputs in 8 bits, of 18432 channels or of 9 experts; and what is made again of one layer:
    # queries and keys of 192 channels and values of 128.
    token = 2 * (2 * 7168 + 128 * 128 + 1536 + 512 + 64)
    layers = 61 * token + 3 * 2 * 18_432 + 58 * 2 * 9 * 2048 + 2 * 128 * (2 * 192 + 128)
    assert found.activations == 15_360 * 4_096 * layers
    assert main(["show", "deepseek_v3", "--seq-len", "1000", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["training_bytes"]["masters"] == found.masters
    for form, weight, cache in (("float32", 4, 4), ("bfloat16", 2, 2)):
        served = said["serving_bytes"][form]
        assert served["weights"] == weight * main_numbers
        assert served["mtp_weights"] == weight * mtp_numbers
        assert served["cache"] == cache * cached * 1000
        assert served["mtp_cache"] == cache * 576 * 1000
        assert served["logits"] == 4 * 129_280
    assert said["serving_bytes"]["fp8"]["cache"] == 70_272 * 1000
    # Not held in 8 bits: embedding, head, routers, norms. Scales: one for each 128 x 128.
    high = 2 * 926_679_040 + 106_430_464 + 14_848 + 881_664
    scales = said["serving_bytes"]["fp8"]["weights"] - (main_numbers + high)
    assert 0 < scales - 4 * (main_numbers - high) / 128**2 < 1e-3 * scales


@pytest.mark.parametrize("name", load.names())
def test_every_config_is_counted_in_a_table_that_cuts_no_number(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["show", name]) == 0
    table = capsys.readouterr().out
    assert "\u2026" not in table
    main(["show", name, "--json"])
    said = json.loads(capsys.readouterr().out)
    total = said["params_total"] + said["params_mtp"]
    assert said["training_bytes"]["masters"] == 4 * total
    cache = said["kv_bytes_per_token"] * said["length"]
    assert said["serving_bytes"]["bfloat16"]["cache"] == cache
    for form in said["serving_bytes"].values():
        assert f"{form['weights']:,}" in table
        assert f"{form['cache']:,}" in table
    for size in said["training_bytes"].values():
        assert not size or f"{size:,}" in table
