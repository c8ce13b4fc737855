"""The router is the reference's: which experts, their weights, and what is counted about them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsjax.layers import router
from dsjax.layers.router import RouterParams
from tests.agreement import (
    TINY,
    V2_MOE,
    V3_MOE,
    as_reference,
    close,
    compiled,
    draw,
    reference_config,
)
from tests.reference import moe

WIDE = dataclasses.replace(V3_MOE, experts=12, groups=4, groups_per_token=2, experts_per_token=3)
RULES = {
    "V3": V3_MOE,
    "V2": V2_MOE,
    "V3, one group": dataclasses.replace(V3_MOE, groups=1, groups_per_token=1),
    "V3, wide": WIDE,
    "V3, ranked by the best": dataclasses.replace(WIDE, group_score="max"),
    "V3, not normalized": dataclasses.replace(WIDE, is_normalized=False),
    "V2, wide": dataclasses.replace(WIDE, score="softmax", group_score="max", has_bias=False),
    "softmax with bias": dataclasses.replace(WIDE, score="softmax", is_normalized=True),
    "seven experts": dataclasses.replace(V3_MOE, experts=7, groups=7, groups_per_token=5,
                                         group_score="max", experts_per_token=3),
}


@pytest.mark.parametrize("name", list(RULES))
def test_choice_weights_and_counts_agree_with_the_reference(name):
    cfg = RULES[name]
    x = np.random.default_rng(0).standard_normal((2, 33, 5))
    is_real = np.arange(33)[None] < np.array([[33], [20]])

    def f(p, x):
        routing = router.route(p, x, cfg)
        return routing, router.stats(routing, jnp.asarray(is_real), cfg)

    with jax.enable_x64(True):
        p = draw(router.router_specs(5, cfg), 1)
        routing, stats = jax.tree.map(np.asarray, compiled(f)(p, x))
    reference = as_reference(p)
    sizes = reference_config(dataclasses.replace(TINY, moe=cfg))
    for b in range(2):
        expected = moe.route(reference, x[b], sizes, is_real[b])
        np.testing.assert_array_equal(routing.experts[b], expected.chosen)
        close(routing.weights[b], expected.weights, 1e-13)
        close(routing.affinity[b], expected.affinity, 1e-13)
        load = moe.expert_load([expected], cfg.experts)
        np.testing.assert_array_equal(stats.loads[b], load)
        tokens = is_real[b].sum()
        unbiased = [moe.top_k(a, cfg.experts_per_token) for a in expected.affinity[is_real[b]]]
        counts = np.bincount(np.ravel(unbiased), minlength=cfg.experts)
        close(stats.frequency[b], counts * cfg.experts / cfg.experts_per_token / tokens, 1e-14)
        shares = expected.affinity / expected.affinity.sum(1, keepdims=True)
        close(stats.affinity[b], shares[is_real[b]].mean(0), 1e-13)
        size = cfg.experts // cfg.groups
        groups = [set(row // size) for row in expected.chosen[is_real[b]]]
        assert max(map(len, groups)) <= cfg.groups_per_token
        sent = [sum(g in row for row in groups) for g in range(cfg.groups)]
        close(stats.group_share[b], np.array(sent) / tokens, 1e-14)


def routed(affinity, bias, cfg):
    """Route one row of tokens whose affinities are given, through logits that produce them."""
    affinity = jnp.asarray(affinity, jnp.float32)
    p = RouterParams(jnp.eye(cfg.experts), None if bias is None else jnp.asarray(bias))
    x = jnp.log(affinity / (1 - affinity))[None]
    return jax.tree.map(np.asarray, compiled(lambda p, x: router.route(p, x, cfg))(p, x))


def test_bias_changes_the_choice_but_not_the_weights():
    cfg = dataclasses.replace(V3_MOE, groups=1, groups_per_token=1)
    affinity = [[0.1, 0.2, 0.3, 0.4, 0.5, 0.6]]
    assert routed(affinity, jnp.zeros(6), cfg).experts.tolist() == [[[5, 4]]]
    biased = routed(affinity, [0.95, 0.0, 0.0, 0.0, 0.0, 0.0], cfg)
    assert biased.experts.tolist() == [[[0, 5]]]
    np.testing.assert_allclose(biased.weights[0, 0], [2.5 * 0.1 / 0.7, 2.5 * 0.6 / 0.7], rtol=1e-6)


def test_a_closed_group_cannot_win_against_negative_biased_scores():
    cfg = dataclasses.replace(V3_MOE, groups_per_token=1)
    chosen = routed([[0.6, 0.5, 0.4, 0.3, 0.2, 0.1]], np.full(6, -2.0, np.float32), cfg).experts
    assert chosen.tolist() == [[[0, 1]]]


def test_ties_go_to_the_lowest_group_and_expert():
    assert routed([[0.5] * 6], jnp.zeros(6), V3_MOE).experts.tolist() == [[[0, 1]]]


def test_bias_has_a_gradient_of_exactly_zero():
    p = draw(router.router_specs(5, V3_MOE), 2)
    x = jnp.asarray(np.random.default_rng(3).standard_normal((2, 4, 5)), jnp.float32)

    def f(p):
        routing = router.route(p, x, V3_MOE)
        stats = router.stats(routing, jnp.ones((2, 4), bool), V3_MOE)
        return (routing.weights**2).sum() + (stats.frequency * stats.affinity).sum()

    gradient = compiled(jax.grad(f))(p)
    assert not np.any(gradient.bias)
    assert np.all(np.any(gradient.centroids != 0, axis=0))


def test_a_row_of_padding_counts_nothing_and_stays_finite():
    p = draw(router.router_specs(5, V3_MOE), 4)
    x = jnp.ones((1, 4, 5))

    def f(p):
        return router.stats(router.route(p, x, V3_MOE), jnp.zeros((1, 4), bool), V3_MOE)

    stats = compiled(f)(p)
    assert all(not np.any(a) for a in jax.tree.leaves(stats))
