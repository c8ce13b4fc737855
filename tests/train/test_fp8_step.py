"""An FP8 step quantizes each weight once, however many microbatches it has."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from dsjax.config.machine import MachineConfig
from dsjax.config.run import PrecisionConfig, RunConfig, TrainConfig
from dsjax.layers.backend import single
from dsjax.model import transformer
from dsjax.model.loss import Batch
from dsjax.numerics import gemm
from dsjax.train import state, step
from tests.train.small_run import MODEL


@pytest.mark.parametrize(("microbatches", "remat"), [
    pytest.param(1, "none", marks=pytest.mark.exhaustive),
    pytest.param(2, "none", marks=pytest.mark.exhaustive),
    pytest.param(1, "v3", marks=pytest.mark.exhaustive),
    (2, "v3"),
])
def test_weights_are_quantized_once_a_step_and_gradients_in_every_microbatch(microbatches, remat):
    run = RunConfig(name="fp8", model=MODEL, machine=MachineConfig(remat=remat),
                    train=TrainConfig(batch_size=4, seq_len=16, microbatches=microbatches),
                    precision=PrecisionConfig(matmul="fp8"))
    quantized = []

    def quantize_weight(w, parts=1):
        quantized.append(w.shape)
        return gemm.FP8.quantize_weight(w, parts)

    precision = dataclasses.replace(gemm.FP8, quantize_weight=quantize_weight)
    after = dataclasses.replace(gemm.FP8.o_proj, quantize_weight=quantize_weight)
    backend = single(dataclasses.replace(precision, o_proj=after))
    tokens = jax.ShapeDtypeStruct((4, 17), jnp.int32)
    batch = Batch(tokens, tokens, jax.ShapeDtypeStruct((4, 17), jnp.float32))
    begun = jax.eval_shape(lambda: state.init(run, jax.random.key(0)))
    jax.eval_shape(step.make_train_step(run, backend), begun, batch)
    # Tracing a microbatch would quantize a weight again if a layer met one that is not yet.
    matrices = [s for s in jax.tree.leaves(transformer.specs(MODEL)) if s.is_product]
    assert len(quantized) == len(matrices) > 10
