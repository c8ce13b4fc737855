"""A gradient cut in three is the same gradient: nothing is computed twice, nothing too early.

What zero-bubble schedules live on: the input's gradient must not wait for a product that only
weights need, and the weights' gradient must not run the forward again.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsjax import params
from dsjax.config.loss import LossConfig
from dsjax.config.model import MLAConfig, ModelConfig, MoEConfig
from dsjax.layers.backend import single
from dsjax.layers.remat import policy
from dsjax.model import block as blocks
from dsjax.pipeline import stage_work
from dsjax.pipeline.split_vjp import needed, split
from dsjax.pipeline.stage_work import Side

MODEL = ModelConfig(
    vocab=11, d_model=12, layers=1, dense_layers=0, dense_dim=16,
    attention=MLAConfig(heads=3, kv_rank=8, nope_dim=6, rope_dim=4, value_dim=5, q_rank=7),
    moe=MoEConfig(experts=7, experts_per_token=2, expert_dim=9),
)


def layer_case(key, remat="none", is_moe=True):
    """A layer, arguments of its split, and its joint gradient as a function of the same."""
    k_w, k_x = jax.random.split(key)
    w = params.init(blocks.block_specs(MODEL, is_moe), k_w, 0.2)
    x = jax.random.normal(k_x, (1, 11, MODEL.d_model))  # no other dim is a multiple of 11
    segments = jnp.array([[1, 1, 1, 2, 2, 2, 2, 3, 3, 0, 0]], jnp.int32)
    weights = LossConfig(balance=0.01, communication_balance=0.02)
    backend = dataclasses.replace(single(), remat=policy(remat))
    layer = stage_work.layer(MODEL, is_moe, weights, backend)
    args = (w, x, Side(segments, jnp.float32(2), None), (jnp.cos(x), jnp.float32(1)))

    def joint(w, x, side, dy):
        y, pull, aux = jax.vjp(lambda w, x: layer(w, x, side), w, x, has_aux=True)
        return y, aux, pull(dy)

    return layer, args, joint


def precision(f, *args):
    """Matrix products in a trace but for the overflow loops, of which B and W each have a part."""
    def count(jaxpr):
        found = 0
        for e in jaxpr.eqns:
            if e.primitive.name == "while":
                continue
            found += e.primitive.name == "dot_general"
            inner = [getattr(v, "jaxpr", v) for v in e.params.values()]
            found += sum(count(j) for j in inner if hasattr(j, "eqns"))
        return found

    return count(jax.make_jaxpr(f)(*args).jaxpr)


@pytest.mark.parametrize("remat", [
    "none", pytest.param("v3", marks=pytest.mark.exhaustive), "full"])
@pytest.mark.parametrize("is_moe", [False, True])
def test_every_product_is_in_one_part(key, remat, is_moe):
    layer, (w, x, side, dy), joint = layer_case(key, remat, is_moe)
    parts = split(layer, w, x, side, dy)
    _, _, stored = jax.eval_shape(parts.forward, w, x, side)
    _, residuals = jax.eval_shape(parts.input_gradient, w, side, stored, dy)
    ahead = precision(parts.forward, w, x, side)
    back = precision(parts.input_gradient, w, side, stored, dy)
    late = precision(parts.weight_gradient, w, side, stored, residuals)
    assert ahead + back + late == precision(joint, w, x, side, dy)
    matrices = sum(s.is_product for s in jax.tree.leaves(
        blocks.block_specs(MODEL, is_moe), is_leaf=params.is_spec))
    assert late >= matrices  # each has its product, and the router's is one more
    if remat == "none":
        assert late == matrices + is_moe


@pytest.mark.parametrize("remat", ["none", "full"])
def test_no_weight_is_stored_or_owed(key, remat):
    layer, (w, x, side, dy), _ = layer_case(key, remat)
    parts = split(layer, w, x, side, dy)
    _, _, stored = jax.eval_shape(parts.forward, w, x, side)
    _, residuals = jax.eval_shape(parts.input_gradient, w, side, stored, dy)
    sizes = {leaf.size for leaf in jax.tree.leaves(w) if leaf.ndim > 1}
    assert not sizes & {a.size for a in [*stored, *residuals]}
    if remat == "full":
        choice = (*x.shape[:2], MODEL.moe.experts_per_token)
        assert [a.shape for a in stored] == [x.shape, choice]


def test_the_parts_make_the_joint_gradient(key):
    layer, args, joint = layer_case(key)
    w, x, side, dy = args
    parts = split(layer, w, x, side, dy)

    def by_parts(w, x, side, dy):
        y, aux, stored = parts.forward(w, x, side)
        dx, residuals = parts.input_gradient(w, side, stored, dy)
        return y, aux, (parts.weight_gradient(w, side, stored, residuals), dx)

    got, wanted = jax.jit(by_parts)(*args), jax.jit(joint)(*args)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        # The same products in programs that may fuse them differently: a few roundings.
        np.testing.assert_allclose(a, b, rtol=0, atol=4e-7 * max(float(jnp.abs(b).max()), 1e-6))


def test_gains_do_not_wait_for_the_weight_gradient(key):
    layer, (w, x, side, dy), _ = layer_case(key)
    parts = split(layer, w, x, side, dy)
    _, _, stored = jax.eval_shape(parts.forward, w, x, side)
    _, residuals = jax.eval_shape(parts.input_gradient, w, side, stored, dy)
    gains = {leaf.size for leaf in jax.tree.leaves(w) if leaf.ndim == 1}
    assert gains <= {a.size for a in residuals}  # summed over tokens already


def test_a_loop_is_cut_to_what_is_wanted_of_it():
    def both(n, a, b):
        return jax.lax.fori_loop(0, n, lambda i, s: (s[0] + 1.0, s[1] @ s[1]), (a, b))

    closed = jax.make_jaxpr(both)(jnp.int32(3), jnp.float32(0), jnp.eye(3))
    (loop,) = [e for e in needed(closed.jaxpr.eqns, closed.jaxpr.outvars[:1])
               if e.primitive.name == "while"]
    assert not any(v.aval.shape == (3, 3) for v in loop.outvars)
    (loop,) = [e for e in needed(closed.jaxpr.eqns, closed.jaxpr.outvars[1:])
               if e.primitive.name == "while"]
    assert any(v.aval.shape == (3, 3) for v in loop.outvars)
