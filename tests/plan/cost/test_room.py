"""Bytes of a device: what the run's own state takes, and what others measured."""

import jax
import numpy as np
import pytest

from dsjax.config.load import load
from dsjax.config.run import with_fields
from dsjax.parallel import mesh
from dsjax.plan.ahead import shard_bytes
from dsjax.plan.cost import site
from dsjax.plan.cost.room import room
from dsjax.plan.evidence import calibration, published
from dsjax.train import sharding

LAYOUTS = ({"data": 8}, {"fsdp": 4, "data": 2}, {"expert": 8}, {"data": 2, "fsdp": 2, "expert": 2},
           {"expert": 4, "expert_nodes": 2, "data": 2})


@pytest.mark.parametrize("layout", LAYOUTS)
def test_masters_and_moments_are_those_of_the_state_that_training_holds(layout):
    run = with_fields(load("small"), parallel=layout)
    state = sharding.abstract(run, mesh.make_mesh(run.parallel))
    found = room(run, site.Site("h100", jax.device_count()))
    assert found.masters == pytest.approx(shard_bytes(state.params), rel=0.03)
    assert found.moments == pytest.approx(shard_bytes((state.opt.mu, state.opt.nu)), rel=0.03)


def test_a_node_takes_what_was_measured_within_five_percent():
    measured = [one for one in published.ROWS if one.gib is not None]
    assert len({one.gib for one in measured}) == 2
    for one in measured:
        assert calibration.gib(one) == pytest.approx(one.gib, rel=0.05)


def test_dualpipe_holds_two_copies_and_one_microbatch_more():
    run = with_fields(load("deepseek_v3"), train={
        "batch_size_start": None, "batch_size_ramp_steps": 0, "microbatches": 120},
        parallel={"pipe": 16, "expert": 64, "expert_nodes": 8, "data": 2, "schedule": "1f1b"})
    one = room(run, site.parse("h800:2048"))
    two = room(with_fields(run, parallel={"schedule": "dualpipe"}), site.parse("h800:2048"))
    assert two.weights == pytest.approx(2 * one.weights)
    assert two.gradients == pytest.approx(2 * one.gradients)
    assert two.masters == pytest.approx(one.masters)
    assert two.activations > one.activations
    assert one.fits
    assert two.fits


def test_more_is_kept_the_less_is_made_again():
    run = with_fields(load("deepseek_v3"), train={
        "batch_size_start": None, "batch_size_ramp_steps": 0, "microbatches": 120},
        parallel={"pipe": 16, "expert": 64, "data": 2})
    sizes = [room(with_fields(run, machine={"remat": remat}), site.parse("h800:2048")).activations
             for remat in ("full", "v3", "none")]
    assert np.all(np.diff(sizes) > 0)
