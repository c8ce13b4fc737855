"""Every parameter has a place from its logical axes; ZeRO-1 cuts nearly all bytes over all axes."""

import dataclasses
import math

import jax
import pytest
from jax.sharding import PartitionSpec as P

from dsjax import params
from dsjax.config import load
from dsjax.config.parallel import ParallelConfig
from dsjax.model import transformer
from dsjax.parallel import rules
from dsjax.parallel.mesh import make_mesh
from tests.train.small_run import MODEL

LAYOUT = ParallelConfig(data=2, fsdp=2, expert=2)


def by_name(tree):
    return dict(params.paths(tree))


def test_experts_lie_over_their_axis_and_matrices_over_fsdp_where_used():
    specs = by_name(transformer.specs(MODEL))
    assert rules.used(specs["moe.ffn.experts.w_gate_up"]) == P(
        None, ("node", "expert"), "fsdp", None, None)
    assert rules.used(specs["moe.attn.w_uq"]) == P(None, "fsdp", None, None)
    assert rules.used(specs["moe.attn.w_o"]) == P(None, None, None, "fsdp")
    assert rules.used(specs["embed"]) == P(None, None)  # used once a step: gathered then


def test_zero_cuts_masters_over_the_axes_that_hold_copies():
    mesh = make_mesh(LAYOUT)
    specs = by_name(transformer.specs(MODEL))
    assert rules.stored(specs["embed"], mesh, use_zero=True) == P(
        None, ("fsdp", "data", "expert"))
    assert rules.stored(specs["moe.ffn.experts.w_down"], mesh, use_zero=True) == P(
        None, ("node", "expert"), None, ("fsdp", "data"))
    assert rules.stored(specs["embed"], mesh, use_zero=False) == P(None, "fsdp")


def test_each_device_of_v3_stores_little_more_than_its_share():
    model = load.load("deepseek_v3").model
    specs = transformer.specs(model)
    layout = ParallelConfig(data=32, expert=64, expert_nodes=8)
    shape = {"data": 32, "fsdp": 1, "node": 8, "expert": 8}
    mesh = jax.sharding.AbstractMesh(tuple(shape.values()), tuple(shape))

    def bytes_here(spec):
        cut = rules.stored(spec, mesh, use_zero=True)
        parts = math.prod(shape[n] for entry in cut for n in rules.mesh_axes(entry))
        return 4 * math.prod(spec.shape) / parts

    here = sum(map(bytes_here, jax.tree.leaves(specs, is_leaf=params.is_spec)))
    share = 4 * params.size(specs) / layout.devices
    assert share <= here < 1.01 * share


def test_a_dim_that_does_not_divide_stays_whole():
    mesh = make_mesh(ParallelConfig(data=8))
    assert rules.stored(params.Spec((9,), (None,)), mesh, use_zero=True) == P(None)
    assert rules.stored(params.Spec((9, 16), ("embed", "hidden")), mesh, use_zero=True) == P(
        None, "data")


def test_an_axis_without_a_rule_is_refused():
    with pytest.raises(ValueError, match="'width' has no rule"):
        rules.used(dataclasses.replace(params.Spec((4,), ("width",))))
