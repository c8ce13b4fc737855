"""EPLB places every expert, evens out the loads, and equals the published example exactly."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsjax.errors import UserError
from dsjax.parallel.eplb import rebalance_experts, slot_loads

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "eplb_example.json").read_text())
quick = settings(max_examples=60, deadline=None, database=None)


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        (
            GOLDEN["num_groups"],
            [GOLDEN[k] for k in ("phy2log_published", "log2phy_computed", "logcnt_computed")],
        ),
        (
            GOLDEN["global_policy"]["num_groups"],
            [
                GOLDEN["global_policy"][key]
                for key in ("phy2log_computed", "log2phy_computed", "logcnt_computed")
            ],
        ),
    ],
    ids=["hierarchical", "global"],
)
def test_the_published_example_is_exact(groups, expected):
    sizes = (GOLDEN["num_replicas"], groups, GOLDEN["num_nodes"], GOLDEN["num_gpus"])
    for ours, theirs in zip(rebalance_experts(GOLDEN["weight"], *sizes), expected):
        np.testing.assert_array_equal(ours, theirs)


def test_experts_that_each_fill_a_gpu_stay_in_their_order():
    phy2log, log2phy, _ = rebalance_experts([[1.0, 3.0, 2.0]], 4, 1, 1, 4)
    assert phy2log.tolist() == [[0, 1, 2, 1]]
    assert log2phy.tolist() == [[[0, -1], [1, 3], [2, -1]]]


@st.composite
def problems(draw: st.DrawFn):
    """Loads [layers, experts] and sizes that fit together, both policies."""
    nodes, gpus_a_node, per_gpu = (draw(st.integers(1, 3)) for _ in range(3))
    gpus = nodes * gpus_a_node
    replicas = gpus * per_gpu
    experts = draw(st.integers(1, replicas))
    groups = draw(st.sampled_from([g for g in range(1, experts + 1) if experts % g == 0]))
    layers = draw(st.integers(1, 3))
    seed = draw(st.integers(0, 2**32 - 1))
    loads = np.random.default_rng(seed).integers(0, 200, (layers, experts))
    return loads, replicas, groups, nodes, gpus


@quick
@given(problems())
def test_the_three_maps_agree_and_no_expert_is_lost(problem):
    loads, replicas, *_ = problem
    phy2log, log2phy, logcnt = rebalance_experts(*problem)
    layers, experts = loads.shape
    assert phy2log.shape == (layers, replicas)
    assert (logcnt >= 1).all()
    assert (logcnt.sum(axis=1) == replicas).all()
    assert log2phy.shape == (layers, experts, logcnt.max())
    for layer in range(layers):
        for expert in range(experts):
            slots = log2phy[layer, expert]
            held, padding = slots[: logcnt[layer, expert]], slots[logcnt[layer, expert] :]
            assert (padding == -1).all()
            assert set(held) == set(np.flatnonzero(phy2log[layer] == expert))


@quick
@given(problems())
def test_hierarchically_a_group_stays_on_one_node(problem):
    loads, replicas, groups, nodes, _ = problem
    phy2log, *_ = rebalance_experts(*problem)
    if groups % nodes == 0:
        group_of = np.arange(loads.shape[1]) // (loads.shape[1] // groups)
        for row in phy2log.reshape(loads.shape[0], nodes, replicas // nodes):
            on_node = [set(group_of[slots]) for slots in row]
            assert sum(map(len, on_node)) == groups


@quick
@given(problems(), st.integers(2, 9))
def test_only_relative_loads_matter(problem, factor):
    loads, *sizes = problem
    scaled = rebalance_experts(loads * 2.0**factor, *sizes)
    for ours, theirs in zip(rebalance_experts(loads, *sizes), scaled):
        np.testing.assert_array_equal(ours, theirs)


def test_replicas_go_to_the_heaviest_experts_and_even_out_the_gpus():
    loads = np.random.default_rng(0).gamma(1.0, size=(58, 256))
    phy2log, _, logcnt = rebalance_experts(loads, 288, 8, 4, 32)  # V3's prefill: 32 redundant
    before = loads.reshape(58, 32, 8).sum(axis=2)
    after = slot_loads(loads, phy2log, logcnt).reshape(58, 32, 9).sum(axis=2)
    np.testing.assert_allclose(after.sum(axis=1), loads.sum(axis=1))
    assert (after.max(axis=1) < before.max(axis=1)).all()
    assert np.mean(after.max(axis=1) / after.mean(axis=1)) < 1.15
    assert (loads[logcnt > 1].min() > loads.mean()).all()


@pytest.mark.parametrize(
    ("loads", "sizes", "words"),
    [
        (np.ones((2, 12)), (8, 4, 2, 8), "cannot hold 12 experts; choose num_replicas >= 12"),
        (np.ones((2, 12)), (16, 5, 2, 8), r"choose num_groups from \[1, 2, 3, 4, 6, 12\]"),
        (np.ones((2, 12)), (18, 4, 2, 8),
         r"choose num_replicas=24, or num_gpus from \[1, 2, 3, 6, 9, 18\]"),
        (np.ones((2, 12)), (18, 4, 2, 9),
         r"choose num_gpus=10, or num_nodes from \[1, 3, 9\]"),
        (np.ones((2, 12)), (16, 4, 0, 8), "num_nodes=0 is less than 1"),
        (np.ones(12), (16, 4, 2, 8), r"shape \[layers, experts\]"),
        (-np.ones((2, 12)), (16, 4, 2, 8), "loads that are negative"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_with_those_that_do(loads, sizes, words):
    with pytest.raises(UserError, match=words):
        rebalance_experts(loads, *sizes)
