"""The oracle's router follows the V3 report and the released code, and its balance losses take
the values that can be derived for uniform and for collapsed routing.
"""

from dataclasses import replace

import numpy as np
import pytest

from . import losses, moe, sample
from .sample import TINY

DIM = 10


@pytest.fixture
def rng():
    return np.random.default_rng(7)


def routed(affinity, cfg, bias=None):
    """Route tokens whose affinities are given, through the logits that produce them."""
    affinity = np.asarray(affinity, float)
    logits = np.log(affinity) - (np.log1p(-affinity) if cfg.score == "sigmoid" else 0)
    router = {"centroids": np.eye(cfg.experts), "bias": bias}
    return moe.route(router, logits, cfg)


def test_bias_changes_the_choice_but_not_the_weights():
    cfg = replace(TINY, groups=1)
    affinity = [[0.1, 0.2, 0.3, 0.4, 0.5, 0.6]]
    assert routed(affinity, cfg).chosen.tolist() == [[5, 4]]
    biased = routed(affinity, cfg, np.array([0.95, 0, 0, 0, 0, 0]))
    assert biased.chosen.tolist() == [[0, 5]]
    np.testing.assert_allclose(biased.weights, [[2.5 * 0.1 / 0.7, 2.5 * 0.6 / 0.7]], rtol=1e-13)


def test_groups_are_scored_by_two_best_in_v3_and_by_the_best_in_v2():
    affinity = [[0.6, 0.01, 0.4, 0.35, 0.1, 0.2]]
    one_group = replace(TINY, groups_per_token=1)
    assert routed(affinity, one_group).chosen.tolist() == [[2, 3]]
    assert routed(affinity, replace(one_group, group_score="max")).chosen.tolist() == [[0, 1]]


def test_masked_groups_cannot_win_against_negative_biased_scores():
    cfg = replace(TINY, groups_per_token=1)
    chosen = routed([[0.6, 0.5, 0.4, 0.3, 0.2, 0.1]], cfg, np.full(6, -2.0)).chosen
    assert chosen.tolist() == [[0, 1]]


def test_ties_go_to_the_lowest_group_and_expert():
    assert routed([[0.5] * 6], TINY).chosen.tolist() == [[0, 1]]


def test_softmax_affinities_without_normalization_are_scaled_as_they_are():
    cfg = replace(TINY, score="softmax", normalize=False, groups=1, scale=16.0)
    result = routed([[0.1, 0.3, 0.05, 0.35, 0.15, 0.05]], cfg)
    assert result.chosen.tolist() == [[3, 1]]
    np.testing.assert_allclose(result.weights, [[16 * 0.35, 16 * 0.3]], rtol=1e-13)


def test_normalized_weights_sum_to_the_scale_and_identical_experts_act_as_one(rng):
    p, x = sample.moe_params(rng, TINY, DIM, 5), rng.standard_normal((5, DIM))
    p["experts"] = {name: np.stack([w[0]] * 6) for name, w in p["experts"].items()}
    y, routing = moe.moe(p, x, TINY)
    np.testing.assert_allclose(routing.weights.sum(1), 2.5, rtol=1e-14)
    one = {name: w[0] for name, w in p["experts"].items()}
    expected = 2.5 * moe.swiglu(one, x) + moe.swiglu(p["shared"], x)
    np.testing.assert_allclose(y, expected, atol=1e-13)


def test_capacity_keeps_the_heaviest_assignments_of_each_expert():
    cfg = replace(TINY, groups=1, experts=3, experts_per_token=1, normalize=False)
    routing = routed([[0.9, 0.1, 0.2], [0.8, 0.1, 0.2], [0.7, 0.1, 0.2], [0.1, 0.3, 0.2]], cfg)
    everything = {(0, 0), (1, 0), (2, 0), (3, 1)}
    assert moe.kept_assignments(routing, cfg, None) == everything
    assert moe.kept_assignments(routing, cfg, 1.0) == everything - {(2, 0)}  # ceil(4 / 3) = 2
    assert moe.kept_assignments(routing, cfg, 0.5) == {(0, 0), (3, 1)}


def test_bias_moves_against_the_load_and_maxvio_measures_the_excess():
    load = np.array([6.0, 2.0, 1.0, 3.0])
    np.testing.assert_allclose(
        moe.updated_bias(np.ones(4), load, 0.25), [0.75, 1.25, 1.25, 1.0], rtol=0
    )
    assert moe.max_violation(load) == 1.0


def test_swiglu_gates_with_the_first_half():
    p = {"w_gate_up": np.array([[[1.0, 0.0], [2.0, -1.0]]]), "w_down": np.eye(2)}
    sigmoid_of_3 = 1 / (1 + np.exp(-3.0))
    np.testing.assert_allclose(
        moe.swiglu(p, np.array([3.0])), [3 * sigmoid_of_3 * 6, 0.0], rtol=1e-14
    )


def test_dropped_assignments_and_padding_add_nothing(rng):
    cfg = replace(TINY, groups=1)
    p, x = sample.moe_params(rng, cfg, DIM, 5), rng.standard_normal((6, DIM))
    is_real = np.array([True] * 5 + [False])
    y, routing = moe.moe(p, x, cfg, is_real, capacity_factor=0.5)  # ceil(5 * 2 / 12) = 1 each
    kept = moe.kept_assignments(routing, cfg, 0.5)
    assert 0 < len(kept) <= cfg.experts
    for t in range(6):
        expected = moe.swiglu(p["shared"], x[t])
        for expert, weight in zip(routing.chosen[t], routing.weights[t]):
            if (t, expert) in kept:
                one = {name: w[expert] for name, w in p["experts"].items()}
                expected = expected + weight * moe.swiglu(one, x[t])
        np.testing.assert_allclose(y[t], expected, atol=1e-14)
    assert not any(t == 5 for t, _ in kept)


def test_load_counts_every_assignment_of_the_real_tokens_of_all_rows(rng):
    p, x = sample.moe_params(rng, TINY, DIM, 5), rng.standard_normal((7, DIM))
    is_real = np.array([True] * 4 + [False] * 3)
    rows = [moe.route(p["router"], x, TINY, is_real), moe.route(p["router"], x, TINY)]
    assert moe.expert_load(rows, TINY.experts).sum() == 2 * (4 + 7)
    expected = sum(np.bincount(r.chosen[r.is_real].ravel(), minlength=6) for r in rows)
    np.testing.assert_array_equal(moe.expert_load(rows, TINY.experts), expected)


# Balance losses


def circulant_routing(cfg, tokens):
    """Token t prefers experts t, t+1, ..., so every expert is chosen equally often."""
    base = 0.9 * 0.8 ** np.arange(cfg.experts)
    if cfg.score == "softmax":
        base = base / base.sum()
    return routed([np.roll(base, t) for t in range(tokens)], cfg)


def test_balance_loss_is_one_when_routing_is_uniform_and_experts_over_k_when_it_collapses():
    cfg = replace(TINY, groups=1)
    uniform = losses.balance_loss_v3(circulant_routing(cfg, 6), cfg)
    assert uniform == pytest.approx(1.0, abs=1e-14)  # f_i = 1, so the sum is sum P_i = 1
    collapsed = routed([[0.5, 0.5, 1e-9, 1e-9, 1e-9, 1e-9]] * 5, cfg)
    loss = losses.balance_loss_v3(collapsed, cfg)
    assert loss == pytest.approx(6 / 2, abs=1e-7)  # f = E/K and P = 1/K for K experts


def test_balance_loss_counts_the_unbiased_top_k_and_only_real_tokens():
    cfg = replace(TINY, groups=1)
    routing = circulant_routing(cfg, 6)
    moved = replace(routing, chosen=np.zeros_like(routing.chosen))
    assert losses.balance_loss_v3(moved, cfg) == losses.balance_loss_v3(routing, cfg)
    padded = moe.Routing(
        np.concatenate([routing.affinity, [[0.9, 0.1, 0.1, 0.1, 0.1, 0.1]] * 3]),
        np.concatenate([routing.chosen, [[0, 1]] * 3]),
        np.concatenate([routing.weights, [[1.0, 1.0]] * 3]),
        np.array([True] * 6 + [False] * 3),
    )
    assert losses.balance_loss_v3(padded, cfg) == losses.balance_loss_v3(routing, cfg)


def test_v2_losses_are_one_when_uniform_and_rise_as_derived_when_collapsed():
    cfg = replace(TINY, score="softmax", normalize=False, groups=1)
    spread = routed([np.roll([0.4, 0.02, 0.04, 0.4, 0.06, 0.08], t) for t in range(6)], cfg)
    result = losses.balance_losses_v2(spread, cfg, devices=2, device_limit=2)
    for value in (result.expert, result.device, result.communication):
        assert value == pytest.approx(1.0, abs=1e-14)  # each token reaches both devices
    # All on experts 0, 1 of device 0: f = 3, 3; f' = (3+3+0)/3 = 2; f'' = 2/2 = 1; P' = 1.
    collapsed = routed([[0.5 - 2e-9, 0.5 - 2e-9] + [1e-9] * 4] * 5, cfg)
    result = losses.balance_losses_v2(collapsed, cfg, devices=2, device_limit=2)
    assert result.expert == pytest.approx(3.0, abs=1e-7)
    assert result.device == pytest.approx(2.0, abs=1e-7)
    assert result.communication == pytest.approx(1.0, abs=1e-7)
