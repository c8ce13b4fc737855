"""Foreign parts are handed in without touching a layer: attention, experts' products, routes."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsjax.config.load import load
from dsjax.config.loss import LossConfig
from dsjax.config.parallel import ParallelConfig
from dsjax.layers.backend import single
from dsjax.model import loss as losses
from dsjax.model import transformer
from dsjax.model.loss import Batch, Objective
from dsjax.numerics.precision import FP32
from dsjax.ops import attention, swiglu
from dsjax.ops.expert_mlp import ExpertMLP, MLPGrads
from dsjax.parallel.mesh import make_mesh
from dsjax.runtime import backend as backends

TINY = load("tiny").model
MOE = dataclasses.replace(TINY.moe, experts=8, experts_per_token=2, expert_dim=16, groups=1,
                          groups_per_token=1)
CFG = dataclasses.replace(TINY, vocab=61, d_model=32, layers=3, dense_dim=24, moe=MOE, mtp_depth=0)
TOKENS = jax.random.randint(jax.random.key(1), (4, 13), 0, 61)
BATCH = Batch(TOKENS, jnp.ones_like(TOKENS), jnp.ones(TOKENS.shape))
PARAMS = transformer.init(CFG, jax.random.key(0))


@functools.partial(jax.jit, static_argnums=2)
def loss_and_gradient(p, batch, backend):
    objective = Objective(losses.count(batch), 0.3, LossConfig())
    return jax.value_and_grad(
        lambda p: losses.loss(p, batch, objective, CFG, backend)[0], allow_int=True)(p)


def assert_near(got, wanted, rtol=2e-5):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * float(jnp.abs(b).max() + 1e-6))


@pytest.fixture(scope="module")
def usual():
    return loss_and_gradient(PARAMS, BATCH, single())


def test_another_attention(usual):
    asked = []

    def attend(q, k, v, segments, scale):
        asked.append(q.shape)
        return attention.attend_plain(q, k, v, segments, scale)

    found = loss_and_gradient(PARAMS, BATCH, dataclasses.replace(single(), attend=attend))
    assert asked
    assert_near(found, usual)


def plain_mlp(rows, w, gate_up, down):
    hidden = swiglu.hidden(jnp.einsum("...cd,...df->...cf", rows, gate_up)) * w
    return jnp.einsum("...cf,...fd->...cd", hidden, down)


def test_another_product_of_experts_with_its_own_gradient(usual):
    asked = []

    def forward(rows, w, gate_up, down, dtype):
        asked.append(rows.shape)
        hidden_in = jnp.einsum("...cd,...df->...cf", rows, gate_up)
        return plain_mlp(rows, w, gate_up, down).astype(dtype), hidden_in

    def backward(rows, w, hidden_in, dy, gate_up, down):
        pull = jax.vjp(plain_mlp, rows, w, gate_up, down)[1]
        d_rows, d_w, d_gate_up, d_down = pull(dy)
        return MLPGrads(d_rows, d_w[..., 0], d_gate_up, d_down)

    foreign = ExpertMLP(FP32, forward, backward)
    found = loss_and_gradient(PARAMS, BATCH, dataclasses.replace(single(), expert_mlp=foreign))
    assert asked
    assert_near(found, usual)


def routed(p, backend):
    keeping = dataclasses.replace(backend, keep_routes=True)
    made = jax.jit(lambda p: transformer.hidden(p, TOKENS, jnp.ones_like(TOKENS), CFG, keeping))(p)
    return made.x, made.stats.experts


def biased(p, bias):
    moe = p.stacks["moe"]
    router = moe.ffn.router.replace(bias=moe.ffn.router.bias + bias[None])
    moved = moe.replace(ffn=moe.ffn.replace(router=router))
    return p.replace(stacks={**p.stacks, "moe": moved})


@pytest.mark.parametrize("layout", [
    pytest.param(None, marks=pytest.mark.exhaustive), ParallelConfig(data=2, expert=2)], ids=str)
def test_routes_that_are_given_are_taken_and_handed_out(layout):
    """Another bias chooses other experts; told the first choice, the model is the first again."""
    backend = single()
    if layout is not None:
        backend = backends.over(backend, CFG, layout, make_mesh(layout))
    x, chosen = routed(PARAMS, backend)
    assert chosen.shape == (CFG.moe_layers, 4, 13, 2)
    other = biased(PARAMS, jnp.linspace(0, 9, MOE.experts))
    moved, elsewhere = routed(other, backend)
    assert np.any(chosen != elsewhere)
    assert not np.allclose(moved, x, atol=1e-4)
    replayed = jax.jit(lambda p, routes: transformer.hidden(
        p, TOKENS, jnp.ones_like(TOKENS), CFG, backend, routes=routes).x)(other, chosen)
    np.testing.assert_allclose(replayed, x, atol=2e-6)


def test_a_step_follows_the_routes_of_its_batch(usual):
    """Gradients too: routes of the router's own choice change nothing, others do."""
    _, chosen = routed(PARAMS, single())
    routes = jnp.moveaxis(chosen, 0, 1)
    same = loss_and_gradient(PARAMS, dataclasses.replace(BATCH, routes=routes), single())
    assert_near(same, usual)
    moved = dataclasses.replace(BATCH, routes=(routes + 1) % MOE.experts)
    assert abs(float(loss_and_gradient(PARAMS, moved, single())[0] - usual[0])) > 1e-5
