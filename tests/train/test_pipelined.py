"""A training step under a pipeline is one device's: losses, gradients, biases, metrics."""

import dataclasses

import jax
import pytest

from dsjax.cli.benches import equal_layouts
from dsjax.cli.benches.equal_layouts import Stepper
from dsjax.config.parallel import ParallelConfig
from dsjax.errors import UserError
from dsjax.runtime import backend as backends
from dsjax.train import pipelined, sharding
from tests.train.small_run import small_run

LAYOUTS = [  # exchanges of experts within a rank make it twice as long to compile
    ParallelConfig(pipe=2, schedule="dualpipe", data=2),
    pytest.param(ParallelConfig(pipe=2, schedule="dualpipe", data=2, expert=2),
                 marks=pytest.mark.exhaustive),
    pytest.param(ParallelConfig(pipe=4, schedule="1f1b", expert=2),
                 marks=pytest.mark.exhaustive),
]


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_a_step_under_a_pipeline_is_the_same(layout):
    alone, piped = Stepper(ParallelConfig(), 4), Stepper(layout, 4)
    for kind in equal_layouts.KINDS:
        found = equal_layouts.compare(layout, 4, kind, piped, alone.take(kind))
        assert found.largest <= equal_layouts.TOLERANCE


def test_masters_rest_in_parts_over_the_ranks():
    run = equal_layouts.configured(ParallelConfig(pipe=4, data=2), 8)
    where = sharding.state_shardings(run, sharding.open_mesh(run))
    assert any("pipe" in str(s.spec) for s in jax.tree.leaves(where.params))


def test_microbatches_that_a_schedule_cannot_serve_are_refused():
    run = equal_layouts.configured(ParallelConfig(pipe=4, schedule="dualpipe"), 4)
    with pytest.raises(UserError, match="microbatches >= 8"):
        sharding.open_mesh(run)


def test_a_capacity_over_rows_of_several_devices_is_refused():
    """It is of a whole microbatch, and a pipeline's devices each see their own rows."""
    run = small_run("unused", "unused")
    moe = dataclasses.replace(run.model.moe, capacity_factor=1.25)
    train = dataclasses.replace(run.train, microbatches=2)
    run = dataclasses.replace(run, train=train, model=dataclasses.replace(run.model, moe=moe),
                              parallel=ParallelConfig(pipe=2, schedule="1f1b"))
    pipelined.check(run)
    spreading = dataclasses.replace(run.parallel, data=2)
    with pytest.raises(UserError, match=r"capacity-factor\b.*1\.25\b.* 2 devices"):
        pipelined.check(dataclasses.replace(run, parallel=spreading))


def test_a_pipeline_of_cut_matrices_is_refused():
    with pytest.raises(ValueError, match=r"pipe=2 .*fsdp=2\b.*choose fsdp=1"):
        dataclasses.replace(ParallelConfig(pipe=2), fsdp=2)


def test_the_header_says_what_the_pipeline_is():
    run = equal_layouts.configured(ParallelConfig(pipe=2, schedule="zb-h1"), 4)
    mesh = sharding.open_mesh(run)
    said = sharding.describe(run, backends.for_run(run, mesh), mesh)["pipeline"]
    assert "2 stages of 1 layers" in said
    assert "4 microbatches, 2 activations" in said
