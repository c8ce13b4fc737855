"""SwiGLU and the mixture are the reference's, dropping none or, with a capacity, the lightest."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsjax.layers import moe as layer
from dsjax.layers.backend import single
from dsjax.layers.router import Routing
from dsjax.layers.swiglu import SwiGLUParams, swiglu, swiglu_specs
from tests.agreement import (
    TINY,
    V2_MOE,
    V3_MOE,
    as_reference,
    close,
    compiled,
    double,
    draw,
    gradients_close,
    pulled,
    reference_config,
)
from tests.reference import moe

D = 8
RULES = {
    "V3": V3_MOE,
    "V2": V2_MOE,
    "no shared expert": dataclasses.replace(V3_MOE, shared_experts=0),
    "V3, capacity 0.75": dataclasses.replace(V3_MOE, capacity_factor=0.75),
    "V2, capacity 0.5": dataclasses.replace(V2_MOE, capacity_factor=0.5),
}


def test_swiglu_and_its_gradients_agree_with_the_reference():
    rng = np.random.default_rng(0)
    x, cotangent = rng.standard_normal((2, 2, 3, D))
    with jax.enable_x64(True):
        p = draw(swiglu_specs(D, 5), 1)
        y, (dp, dx) = pulled(lambda p, x: swiglu(p, x, double()), cotangent, p, x)
    together = {"p": as_reference(p), "x": x}
    close(y, moe.swiglu(together["p"], x))
    gradients_close({"p": as_reference(dp), "x": dx},
                    lambda q: np.sum(moe.swiglu(q["p"], q["x"]) * cotangent), together)


def test_the_first_half_of_swiglu_is_the_gate():
    p = SwiGLUParams(jnp.array([[[1.0, 0.0], [2.0, -1.0]]]), jnp.eye(2))
    y = compiled(lambda p: swiglu(p, jnp.array([[[3.0]]]), single()))(p)
    np.testing.assert_allclose(y[0, 0], [3 / (1 + np.exp(-3.0)) * 6, 0.0], rtol=1e-6)


@pytest.mark.parametrize("name", list(RULES))
def test_mixture_and_all_gradients_agree_with_the_reference(name):
    cfg = RULES[name]
    rng = np.random.default_rng(2)
    x, cotangent = rng.standard_normal((2, 1, 13, D))  # one row: capacity is of the batch
    is_real = np.arange(13)[None] < 11
    cotangent = cotangent * is_real[..., None]
    with jax.enable_x64(True):
        p = draw(layer.moe_specs(D, cfg), 3)
        y, (dp, dx) = pulled(lambda p, x: layer.moe(p, x, is_real, cfg, double())[0], cotangent,
                             p, x)
    sizes = reference_config(dataclasses.replace(TINY, moe=cfg))
    together = {"p": as_reference(p), "x": x}

    def expected(q):
        return moe.moe(q["p"], q["x"][0], sizes, is_real[0], cfg.capacity_factor)[0][None]

    close(y[is_real], expected(together)[is_real])
    gradients_close({"p": as_reference(dp), "x": dx},
                    lambda q: np.sum(expected(q) * cotangent), together)
    if cfg.capacity_factor is not None:
        routing = moe.moe(together["p"], x[0], sizes, is_real[0])[1]
        kept = moe.kept_assignments(routing, sizes, cfg.capacity_factor)
        assert len(kept) < 11 * cfg.experts_per_token  # the case drops something


def kept_of(weights, experts, factor, is_real=None):
    """Assignments of three experts that limit_capacity leaves, one choice a token."""
    weights, experts = jnp.asarray(weights)[None, :, None], jnp.asarray(experts)[None, :, None]
    cfg = dataclasses.replace(V3_MOE, experts=3, groups=1, groups_per_token=1,
                              experts_per_token=1, capacity_factor=factor, is_normalized=False)
    is_real = jnp.ones(weights.shape[:2], bool) if is_real is None else jnp.asarray(is_real)[None]
    routing = Routing(experts, weights, jnp.zeros((*weights.shape[:2], 3)))
    limited = compiled(lambda routing: layer.limit_capacity(routing, is_real, cfg))(routing)
    return (np.asarray(limited.weights)[0, :, 0] > 0).tolist()


def test_capacity_keeps_the_heaviest_and_of_equals_the_earlier():
    experts, weights = [0, 0, 0, 1], [0.7, 0.9, 0.8, 0.1]
    assert kept_of(weights, experts, 3.0) == [True] * 4
    assert kept_of(weights, experts, 1.0) == [False, True, True, True]  # ceil(4 / 3) = 2
    assert kept_of(weights, experts, 0.5) == [False, True, False, True]
    assert kept_of([0.5] * 4, experts, 0.5) == [True, False, False, True]


def test_padding_neither_competes_nor_counts_towards_capacity():
    experts, weights, is_real = [0, 0, 0, 0, 1], [0.9, 0.2, 0.3, 0.4, 0.1], [False, *[True] * 4]
    # ceil(4 / 3) = 2 stay with expert 0, and padding is not one of them however heavy.
    assert kept_of(weights, experts, 1.0, is_real) == [False, False, True, True, True]
    # With padding counted, ceil(0.75 * 5 / 3) = 2 would stay; of the real tokens 1 does.
    assert kept_of(weights, experts, 0.75, is_real) == [False, False, False, True, True]


def test_capacity_of_a_decimal_factor_has_no_rounding():
    def capacity(factor, assignments):
        cfg = dataclasses.replace(V3_MOE, experts=10, groups=1, groups_per_token=1,
                                  capacity_factor=factor)
        return int(layer._capacity(jnp.int32(assignments), assignments, cfg))

    assert capacity(1.1, 100) == 11  # 1.1 * 10 is above 11 in floats
    assert capacity(1.1, 101) == 12
    assert capacity(0.003, 10_000) == 3  # small factors are no rounder
    assert capacity(0.003, 10_001) == 4
    assert capacity(1e-12, 10_000) == 1
    assert capacity(30.0, 10_000) == 10_000  # all of them
    large = 2**26  # the product with the decimal's numerator has more than 31 bits
    assert capacity(1.2345678, large) == pytest.approx(1.2345678 * large / 10, rel=0.5 / 2**4)
    assert capacity(0.003, large) == -(-3 * large // 10_000)


def test_permuting_tokens_permutes_outputs_and_leaves_counts():
    x = jnp.asarray(np.random.default_rng(4).standard_normal((1, 9, D)), jnp.float32)
    with jax.enable_x64(True):
        p = draw(layer.moe_specs(D, V3_MOE), 5)
        x = x.astype(jnp.float64)
        order = np.random.default_rng(6).permutation(9)
        f = compiled(lambda x: layer.moe(p, x, jnp.ones((1, 9), bool), V3_MOE, double()))
        (y, stats), (moved, moved_stats) = f(x), f(x[:, order])
        close(moved, y[:, order], 1e-13)
        jax.tree.map(lambda a, b: close(a, b, 1e-13), stats, moved_stats)


def test_an_expert_that_nobody_chose_has_no_gradient():
    cfg = dataclasses.replace(V3_MOE, groups=1, groups_per_token=1)
    p = draw(layer.moe_specs(D, cfg), 7)
    p = p.replace(router=p.router.replace(bias=jnp.array([0.0, 0.0, -9.0, 0.0, 0.0, 0.0])))
    x = jnp.asarray(np.random.default_rng(8).standard_normal((1, 40, D)), jnp.float32)

    def f(p):
        return (layer.moe(p, x, jnp.ones((1, 40), bool), cfg, single())[0] ** 2).sum()

    gradient = compiled(jax.grad(f))(p)
    for leaf in jax.tree.leaves(gradient.experts):
        is_moved = np.any(np.asarray(leaf) != 0, axis=tuple(range(1, leaf.ndim)))
        np.testing.assert_array_equal(is_moved, [True, True, False, True, True, True])
    assert not np.any(gradient.router.bias)
