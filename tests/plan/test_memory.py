"""Memory of a device is split by kind to the byte, and where it is too much a way out is named."""

import dataclasses
import functools
import re

import jax
import numpy as np
import pytest

from dsjax.config.flags.commandline import override
from dsjax.config.load import load
from dsjax.model import transformer
from dsjax.parallel import mesh as meshes
from dsjax.plan import memory
from dsjax.plan.ahead import Refused, _refused
from dsjax.plan.memory import KINDS, WORKING, Memory
from dsjax.runtime import backend as backends
from dsjax.train import sharding

LAYOUT = ["--parallel.data", "2", "--parallel.fsdp", "2", "--parallel.expert", "2",
          "--train.batch-size", "16", "--precision", "bf16"]


@pytest.fixture(scope="module")
def run():
    return override(load("tiny"), LAYOUT)


@functools.cache
def measured(run, total=10**8):
    mesh = meshes.make_mesh(run.parallel)
    state = sharding.abstract(run, mesh)
    backend = backends.for_run(run, mesh)
    return memory.measure(
        total, 10**9, {"masters": state.params, "moments": (state.opt.mu, state.opt.nu)}, (),
        transformer.specs(run.model), mesh, backend.precision)


def test_masters_and_moments_are_what_a_device_holds_of_them(run):
    """Each leaf's bytes on the first device, from a state that is there."""
    found = measured(run)
    mesh = meshes.make_mesh(run.parallel)
    held = sharding.init(run, mesh)
    here = jax.devices()[0]

    def bytes_here(tree):
        return sum(s.data.nbytes for a in jax.tree.leaves(tree) for s in a.addressable_shards
                   if s.device == here)

    assert found.parts["masters"] == bytes_here(held.params)
    assert found.parts["moments"] == bytes_here((held.opt.mu, held.opt.nu))
    assert sum(found.parts.values()) == found.total == 10**8
    assert tuple(found.parts) == KINDS
    assert tuple(found.working) == WORKING


def test_compute_weights_are_half_of_the_gradients_where_they_are_bfloat16(run):
    """Matrices: 2 bytes against 4; embedding, head, router and norms: 4 and 4."""
    weights, gradients, _ = measured(run).working.values()
    assert gradients / 2 < weights < gradients
    experts = run.model.moe.experts * 3 * run.model.d_model * run.model.moe.expert_dim
    per_device = experts * (run.model.moe_layers + run.model.mtp_depth) // 4  # fsdp 2 x expert 2
    assert gradients > 4 * per_device


def test_what_a_compiler_may_make_a_layer_at_a_time_is_said_at_most(run):
    """And what is left for activations at least, down to nothing."""
    weights, gradients, left = measured(run).working.values()
    assert left == measured(run).parts[KINDS[-1]] - weights - gradients > 0
    held = 10**8 - weights - gradients - left
    found = measured(run, held + gradients // 2)
    assert found.parts[KINDS[-1]] == gradients // 2
    assert list(found.working.values()) == [min(weights, gradients // 2), gradients // 2, 0]


def test_fsdp_halves_what_layers_use(run):
    wide = dataclasses.replace(
        run, parallel=dataclasses.replace(run.parallel, data=1, fsdp=4))
    one, two = (measured(r).working["gradients, at most"] for r in (run, wide))
    assert two < 0.75 * one


def advised(run, kind, limit=8 * 10**8):
    sizes = dict.fromkeys((*KINDS, *WORKING), 10) | {kind: 10**9}
    found = Memory({k: sizes[k] for k in KINDS}, {k: sizes[k] for k in WORKING}, 10**9, limit)
    return memory.advice(found, run, sharding.check)


@pytest.mark.parametrize(("kind", "way"), [
    (WORKING[2], "activations and temporaries take at least 1.0 GB: fewer rows at once, "
     "--train.microbatches 2."),
    (WORKING[1], "gradients take at most 1.0 GB: cut them over twice as many devices, "
     "--parallel.data 1 --parallel.fsdp 4."),
])
def test_advice_names_the_largest_part_and_what_makes_it_smaller(run, kind, way):
    assert advised(run, kind) == f"0.2 GB too many. {way}"
    assert advised(run, kind, limit=10**9) == ""


@pytest.mark.parametrize(("flags", "kind"), [
    (["--train.batch-size", "24"], WORKING[2]),  # three rows a device
    (["--parallel.interleave"], WORKING[2]),  # which needs two rows at once
    (["--train.microbatches", "2", "--machine.remat", "full"], WORKING[2]),
    (["--parallel.data", "1", "--parallel.expert", "4"], WORKING[0]),
    ([], "masters"),
    ([], "moments"),
    (["--parallel.no-use-zero"], "moments"),
])
def test_advice_can_be_followed(run, flags, kind):
    """The flags that it names are taken, need no more devices and change the run."""
    run = override(run, flags)
    said = advised(run, kind)
    named = re.findall(r"--[a-z]+\.[a-z0-9-]+(?: [a-z0-9]+)?", said)
    changed = override(run, [word for flag in named for word in flag.split()])
    sharding.check(changed)
    assert changed.parallel.devices == run.parallel.devices
    assert (changed != run) != said.endswith(f"{memory.MORE_DEVICES}.")


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
