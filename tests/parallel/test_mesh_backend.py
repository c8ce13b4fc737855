"""Experts at rest in 8 bits (a released checkpoint, as stored) run over devices as on one."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsjax.config.parallel import ParallelConfig
from dsjax.config.run import PrecisionConfig, RunConfig, TrainConfig
from dsjax.model import transformer
from dsjax.numerics.scaled import quantize
from dsjax.runtime import backend as backends
from dsjax.train import sharding
from tests.agreement import compiled
from tests.train.small_run import MODEL

CFG = dataclasses.replace(MODEL, layers=1, dense_layers=0, mtp_depth=0)
TOKENS = jnp.asarray(np.random.default_rng(1).integers(0, CFG.vocab, (4, 7)), jnp.int32)


@pytest.fixture(scope="module")
def stored():
    """Parameters whose experts are codes with a scale in 8 x 8."""
    p = transformer.init(CFG, jax.random.key(0))
    experts = p.moe.ffn.experts
    resting = dataclasses.replace(experts, w_gate_up=quantize(experts.w_gate_up, (8, 1, 8)),
                                  w_down=quantize(experts.w_down, (8, 8)))
    ffn = dataclasses.replace(p.moe.ffn, experts=resting)
    return dataclasses.replace(p, stacks={"moe": dataclasses.replace(p.moe, ffn=ffn)})


def logits(p, layout, precision="fp32"):
    run = RunConfig(name="stored", model=CFG, train=TrainConfig(batch_size=4, seq_len=7),
                    precision=PrecisionConfig(precision), parallel=layout)
    mesh = sharding.open_mesh(run)
    backend = backends.for_run(run, mesh)
    specs = transformer.specs(CFG)
    return np.asarray(compiled(lambda p, tokens: transformer.logits(
        backend.layout.gather_params(p, specs), tokens, CFG, backend=backend))(p, TOKENS))


@pytest.mark.parametrize("layout", [
    pytest.param(ParallelConfig(expert=2), marks=pytest.mark.exhaustive),
    ParallelConfig(fsdp=2, expert=2)], ids=str)
def test_experts_at_rest_in_8_bits_give_one_devices_logits(stored, layout):
    wanted = logits(stored, ParallelConfig())
    found = logits(stored, layout)
    # roundings of float32 sums over a few dozen channels, in another order
    np.testing.assert_allclose(found, wanted, atol=1e-5 * np.abs(wanted).max())


def test_in_fp8_only_the_sums_that_travel_round_otherwise(stored):
    """Tokens arrive as the operands of one device; sums come back rounded to bfloat16 once."""
    wanted = logits(stored, ParallelConfig(), "fp8")
    found = logits(stored, ParallelConfig(expert=2), "fp8")
    assert np.abs(found - wanted).max() <= 2.0**-6 * np.abs(wanted).max()
