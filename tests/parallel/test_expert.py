"""Experts over devices make what one device makes, whatever the rounds, stages and axes."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsjax.config.model import MLAConfig, ModelConfig, MoEConfig
from dsjax.config.parallel import ParallelConfig
from dsjax.layers.backend import single
from dsjax.numerics import gemm
from dsjax.numerics import precision as numerics
from dsjax.parallel.mesh import make_mesh
from dsjax.parallel.mesh_backend import on_mesh

T, D, F, E, K = 64, 12, 5, 16, 3  # tokens, model, expert hidden, experts, experts per token
MODEL = ModelConfig(
    vocab=30, d_model=D, layers=2, dense_layers=1, dense_dim=7,
    attention=MLAConfig(heads=3, kv_rank=8, nope_dim=6, rope_dim=4, value_dim=5, q_rank=10),
    moe=MoEConfig(experts=E, experts_per_token=K, expert_dim=F, groups=4, groups_per_token=2),
    mtp_depth=0,
)
LAYOUTS = [
    ParallelConfig(expert=8),
    ParallelConfig(data=2, expert=4),
    ParallelConfig(fsdp=2, expert=2, data=2),
    ParallelConfig(expert=8, expert_nodes=2),
    ParallelConfig(data=2, expert=4, expert_nodes=4),
]


def mostly_exhaustive(values, *quick):
    """All of the values; those at other places than `quick` where every combination is asked for.
    """
    return [v if i in quick else pytest.param(v, marks=pytest.mark.exhaustive)
            for i, v in enumerate(values)]


@functools.cache
def inputs(is_skewed: bool = False):
    keys = jax.random.split(jax.random.key(7), 6)
    scores = jax.random.normal(keys[1], (T, E))
    if is_skewed:  # half of all tokens choose expert 5 first
        scores = scores.at[: T // 2, 5].add(10.0)
    return (
        jax.random.normal(keys[0], (T, D)),
        jax.lax.top_k(scores, K)[1],
        jax.random.uniform(keys[2], (T, K)),
        jax.random.normal(keys[3], (E, D, 2, F)),
        jax.random.normal(keys[4], (E, F, D)),
    ), jax.random.normal(keys[5], (T, D))


def value_and_grads(backend, args, d_y):
    """y, extra rounds, and gradients for x, weights and both matrices."""
    x, experts, weights, gate_up, down = args

    def f(x, weights, gate_up, down):
        y, extra = backend.dispatch(x, experts, weights, gate_up, down,
                                    backend.expert_mlp)
        return (y * d_y).sum(), (y, extra)

    (_, (y, extra)), grads = jax.jit(
        jax.value_and_grad(f, argnums=(0, 1, 2, 3), has_aux=True))(x, weights, gate_up, down)
    return y, float(extra), grads


def sharded(layout, backend=None):
    return on_mesh(backend or single(), make_mesh(layout), layout, MODEL)


@functools.cache
def alone(is_skewed: bool = False):
    args, d_y = inputs(is_skewed)
    return value_and_grads(single(), args, d_y)


def close(got, wanted):
    """Sums of the same float32 terms in another order."""
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        eps = 40 * np.finfo(np.float32).eps
        np.testing.assert_allclose(a, b, rtol=eps, atol=eps * float(jnp.abs(b).max()))


@pytest.mark.parametrize("layout", mostly_exhaustive(LAYOUTS), ids=str)  # more rounds hold it too
def test_every_layout_makes_what_one_device_makes(layout):
    args, d_y = inputs()
    y, _, grads = value_and_grads(sharded(layout), args, d_y)
    close((y, grads), (alone()[0], alone()[2]))


@pytest.mark.parametrize("layout", mostly_exhaustive(LAYOUTS[::3], 1), ids=str)
def test_what_exceeds_a_round_travels_in_more_rounds_and_nothing_is_dropped(layout):
    args, d_y = inputs(is_skewed=True)
    tight = dataclasses.replace(layout, capacity_factor=0.2)
    y, extra, grads = value_and_grads(sharded(tight), args, d_y)
    assert extra >= 1
    close((y, grads), (alone(True)[0], alone(True)[2]))


@pytest.mark.parametrize("precision", mostly_exhaustive([numerics.BF16, gemm.FP8], 1),
                         ids=lambda p: p.name)
def test_low_precision_travels_as_narrow_as_its_products_read(precision):
    args, d_y = inputs()
    backend = single(precision)
    wanted = value_and_grads(backend, args, d_y)
    y, _, grads = value_and_grads(sharded(LAYOUTS[1], backend), args, d_y)
    # Tokens arrive as products read them; each of K sums comes back in bfloat16, 2^-8 off at most.
    near(y, wanted[0], 2.0**-8)
    # A gradient in E4M3 is off by 2^-4 at most, on average less; it is quantized once more.
    near(grads, wanted[2], 0.05 if precision is gemm.FP8 else K * 2.0**-8)


def near(got, wanted, share):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        assert float(jnp.linalg.norm(a - b)) < share * float(jnp.linalg.norm(b))


def test_wide_rounds_need_no_second():
    args, d_y = inputs()
    wide = dataclasses.replace(LAYOUTS[0], capacity_factor=9.0)
    _, extra, _ = value_and_grads(sharded(wide), args, d_y)
    assert extra == 0
