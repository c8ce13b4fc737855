"""What a device needs is split by kind to the byte, and where it is too much a way out is named."""

import dataclasses

import jax
import numpy as np
import pytest

from dsjax.config.load import load, override
from dsjax.model import transformer
from dsjax.parallel import mesh as meshes
from dsjax.plan import memory
from dsjax.plan.ahead import Refused, _refused
from dsjax.plan.memory import KINDS, Memory
from dsjax.train import platform, spread

LAYOUT = ["--parallel.data", "2", "--parallel.fsdp", "2", "--parallel.expert", "2", "--train.batch",
          "16", "--train.precision", "bf16"]


@pytest.fixture(scope="module")
def run():
    return override(load("tiny"), LAYOUT)


def measured(run, total=10**8):
    mesh = meshes.make_mesh(run.parallel)
    state = spread.abstract(run, mesh)
    backend = spread.on_mesh(run, platform.choose_backend(run), mesh)
    return memory.measure(
        total, 10**9, {"masters": state.params, "moments": (state.opt.mu, state.opt.nu)}, (),
        transformer.specs(run.model), mesh, backend.products)


def test_masters_and_moments_are_what_a_device_holds_of_them(run):
    """Each leaf's bytes on the first device, from a state that is there."""
    found = measured(run)
    mesh = meshes.make_mesh(run.parallel)
    held = spread.init(run, mesh)
    here = jax.devices()[0]

    def bytes_here(tree):
        return sum(s.data.nbytes for a in jax.tree.leaves(tree) for s in a.addressable_shards
                   if s.device == here)

    assert found.parts["masters"] == bytes_here(held.params)
    assert found.parts["moments"] == bytes_here((held.opt.mu, held.opt.nu))
    assert sum(found.parts.values()) == found.total == 10**8
    assert tuple(found.parts) == KINDS


def test_compute_weights_are_half_of_the_gradients_where_they_are_bfloat16(run):
    """Matrices: 2 bytes against 4; embedding, head, router and norms: 4 and 4."""
    found = measured(run)
    weights, gradients = found.parts["compute weights"], found.parts["gradients"]
    assert gradients / 2 < weights < gradients
    experts = run.model.moe.experts * 3 * run.model.d_model * run.model.moe.expert_dim
    per_device = experts * (run.model.moe_layers + run.model.mtp_depth) // 4  # fsdp 2 x expert 2
    assert gradients > 4 * per_device


def test_what_a_compiler_makes_a_layer_at_a_time_is_taken_for_less(run):
    """Where it asks for less than weights and gradients would take whole."""
    whole = measured(run).parts
    held = whole["masters"] + whole["moments"]
    found = measured(run, held + whole["gradients"] // 2)
    assert sum(found.parts.values()) == found.total
    assert (found.parts["compute weights"], found.parts["gradients"]) == (
        0, found.total - held)
    assert min(found.parts.values()) == 0


def test_fsdp_halves_what_layers_use(run):
    wide = dataclasses.replace(
        run, parallel=dataclasses.replace(run.parallel, data=1, fsdp=4))
    one, two = measured(run), measured(wide)
    assert two.parts["gradients"] < 0.75 * one.parts["gradients"]


@pytest.mark.parametrize(("kind", "way"), [
    ("activations and temporaries", "--train.microbatches 2"),
    ("gradients", "--parallel.fsdp 4 --parallel.data 1"),
])
def test_advice_names_the_largest_part_and_what_makes_it_smaller(run, kind, way):
    parts = dict.fromkeys(KINDS, 10) | {kind: 10**9}
    said = memory.advice(Memory(parts, 10**9 + 50, 8 * 10**8), run)
    assert f"{kind} take 1.0 GB" in said
    assert way in said
    assert memory.advice(Memory(parts, 10**9, 10**9), run) == ""


def test_what_the_compiler_says_of_too_little_memory_is_read():
    whole = "RESOURCE_EXHAUSTED: Used 97.50G of 95.74G hbm."
    part = ("RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
            "temporaries (97.61G) exceeds available HBM (95.74G).")
    found = _refused(whole, 7, (0.0, 0.0))
    assert isinstance(found, Refused)
    assert (found.needed, found.limit) == (int(97.5 * 2**30), int(95.74 * 2**30))
    assert _refused(part, 7, (0.0, 0.0)).needed == int(97.61 * 2**30) + 7
    assert _refused("INTERNAL: something else", 7, (0.0, 0.0)) is None
    assert np.isfinite(found.cost.seconds)
