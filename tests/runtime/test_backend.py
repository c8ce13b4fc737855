"""Parts that are handed in reach every program: a pipeline's ranks and decoding too.

What it defends against: a seam that is there, and left out where a backend is made from another.
"""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from dsjax.cli.benches import equal_layouts
from dsjax.config.parallel import ParallelConfig
from dsjax.layers.backend import single
from dsjax.model.loss import Batch, Objective, Totals
from dsjax.numerics.precision import FP32
from dsjax.ops import attention, expert_mlp
from dsjax.ops.expert_mlp import ExpertMLP
from dsjax.runtime import backend as backends
from dsjax.train import pipelined, sharding

OURS = expert_mlp.batched(FP32)


def attend(q, k, v, segments, scale):
    return attention.attend_plain(q, k, v, segments, scale)


def test_a_rank_of_a_pipeline_keeps_what_was_handed_in():
    layout = ParallelConfig(pipe=2, expert=2)
    model = equal_layouts.RUN.model
    foreign = ExpertMLP(FP32, OURS.forward, OURS.backward)
    given = dataclasses.replace(single(), attend=attend, expert_mlp=foreign, loss_chunk=7)
    rank = backends.for_rank(given, model, layout)
    kept = {f.name for f in dataclasses.fields(rank)
            if getattr(rank, f.name) is getattr(given, f.name)}
    assert {f.name for f in dataclasses.fields(rank)} - kept == {"dispatch"}


def test_a_foreign_product_multiplies_for_a_handful_of_tokens_too():
    """Few assignments are written out by a form of our own, which would leave it out."""
    asked = []

    def forward(*given):
        asked.append(given[0].shape)
        return OURS.forward(*given)

    backend = backends.decoding(single())
    x, experts = jnp.ones((1, 8)), jnp.array([[0, 5]], jnp.int32)
    weights, gate_up = jnp.ones((1, 2)), jax.random.normal(jax.random.key(0), (16, 8, 2, 4))
    down = jax.random.normal(jax.random.key(1), (16, 4, 8))
    given = (x, experts, weights, gate_up, down)
    y, _ = backend.dispatch(*given, ExpertMLP(FP32, forward, OURS.backward))
    assert asked
    assert jnp.allclose(y, backend.dispatch(*given, OURS)[0], atol=1e-5)


def test_a_pipeline_refuses_routes_that_it_would_leave_out():
    run = equal_layouts.configured(ParallelConfig(pipe=2, schedule="1f1b"), 4)
    mesh = sharding.open_mesh(run)
    backend = backends.for_run(run, mesh)
    tokens = jnp.zeros((4, 5), jnp.int32)
    batch = Batch(tokens, tokens, jnp.ones(tokens.shape), routes=jnp.zeros((4, 1, 5, 2), jnp.int32))
    objective = Objective(Totals(jnp.ones(()), jnp.ones(())), 0.0, run.loss)
    with pytest.raises(ValueError, match="routes"):
        pipelined.make_gradients(run, backend, mesh)({}, batch, objective, run, backend)
