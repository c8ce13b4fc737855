"""A training step under a pipeline is one device's: losses, gradients, biases, metrics."""

import dataclasses

import jax
import pytest

from dsjax.config.parallel import ParallelConfig
from dsjax.errors import UserError
from dsjax.train import layouts, spread
from dsjax.train.layouts import Stepper

LAYOUTS = [
    ParallelConfig(pipe=2, schedule="dualpipe", data=2, expert=2),
    ParallelConfig(pipe=4, schedule="1f1b", expert=2),
]


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_a_step_under_a_pipeline_is_the_same(layout):
    alone, piped = Stepper(ParallelConfig(), 4), Stepper(layout, 4)
    for kind in layouts.KINDS:
        found = layouts.compare(layout, 4, kind, piped, alone.take(kind))
        assert found.largest <= layouts.TOLERANCE


def test_masters_rest_in_parts_over_the_ranks():
    run = layouts.configured(ParallelConfig(pipe=4, data=2), 8)
    where = spread.state_shardings(run, spread.open_mesh(run))
    assert any("pipe" in str(s.spec) for s in jax.tree.leaves(where.params))


def test_microbatches_that_a_schedule_cannot_serve_are_refused():
    run = layouts.configured(ParallelConfig(pipe=4, schedule="dualpipe"), 4)
    with pytest.raises(UserError, match="microbatches >= 8"):
        spread.open_mesh(run)


def test_a_pipeline_of_cut_matrices_is_refused():
    with pytest.raises(ValueError, match="choose fsdp 1"):
        dataclasses.replace(ParallelConfig(pipe=2), fsdp=2)


def test_the_header_says_what_the_pipeline_is():
    run = layouts.configured(ParallelConfig(pipe=2, schedule="zb-h1"), 4)
    said = spread.describe(run, spread.open_mesh(run))["pipeline"]
    assert "2 stages of 1 layers" in said
    assert "4 microbatches, 2 activations" in said
