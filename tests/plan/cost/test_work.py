"""Work of a token is what the model's count says, and an exchange's copies are those counted."""

import dataclasses

import numpy as np
import pytest

from dsjax.config.load import load
from dsjax.config.parallel import ParallelConfig
from dsjax.model.count import training_flops
from dsjax.parallel import comm_volume
from dsjax.plan.cost import exchange, site, work

CONFIGS = ("deepseek_v3", "deepseek_v2", "deepseek_v2_lite", "kimi_k2", "tiny")


@pytest.mark.parametrize("name", CONFIGS)
def test_three_passes_are_the_flops_of_training(name):
    cfg, length = load(name).model, 4096
    found = work.of(cfg, length, 2)
    forward = sum(layer.flops for layer in found.layers) + found.heads * found.head
    norms = 3 * 2 * (2 * cfg.d_model + 4096) * (cfg.layers + cfg.mtp_depth + 1)  # count has them
    assert abs(3 * forward - training_flops(cfg, length)) < norms


def test_numbers_of_all_layers_and_the_ends_are_the_parameters():
    for name in CONFIGS:
        cfg = load(name).model
        found = work.of(cfg, 64, 2)
        held = sum(layer.shared + layer.routed for layer in found.layers) + found.ends
        assert held == pytest.approx(found.numbers, rel=2e-3)  # routers and norms are not in it
        assert held < found.numbers


def test_a_narrow_operand_moves_more_beside_products_for_its_codes_and_less_for_tokens():
    moe = load("deepseek_v3").model
    wide, narrow = (work.of(moe, 4096, size).layers for size in (2, 1))
    assert wide[0].moved < narrow[0].moved  # a dense layer: codes are read and written
    per_token = moe.moe.experts_per_token * moe.d_model
    assert wide[-1].moved - narrow[-1].moved < 3 * per_token


@pytest.mark.parametrize(("nodes", "devices", "groups", "limit"),
                         [(4, 16, 4, 2), (1, 8, 8, 4), (2, 8, 2, 2)])
def test_copies_are_those_of_even_choices(nodes, devices, groups, limit):
    rng, tokens, each = np.random.default_rng(3), 20_000, 4
    experts = 64 // groups
    chosen = np.argsort(rng.random((tokens, groups)), 1)[:, :limit]  # groups of a token
    allowed = np.zeros((tokens, groups), bool)
    np.put_along_axis(allowed, chosen, True, 1)
    scores = np.where(np.repeat(allowed, experts, 1), rng.random((tokens, 64)), -1)
    routes = np.argsort(-scores, 1)[:, :each]
    counted = comm_volume.count(routes, 64, devices, nodes, 2 if nodes > 1 else 1)
    moe = dataclasses.replace(load("tiny").model.moe, experts=64, experts_per_token=each,
                              groups=groups, groups_per_token=limit)
    there = site.Site("h800", devices)
    layout = ParallelConfig(expert=devices, expert_nodes=nodes)
    made = exchange.copies(moe, layout, there)
    assert made.far == pytest.approx(counted.slow, rel=0.02)  # 20,000 tokens: an error of 0.4 %
    assert made.near == pytest.approx(counted.fast, rel=0.03)  # places are not independent


def test_no_experts_apart_exchange_nothing():
    moe = load("deepseek_v3").model.moe
    assert exchange.seconds(moe, ParallelConfig(), site.parse("h800:8"), 7168, 1) == 0
