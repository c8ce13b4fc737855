"""A training step under a pipeline is one device's: losses, gradients, biases, metrics; and a run
may go into a pipeline and out of it whenever it resumes.
"""

import dataclasses
import io

import jax
import numpy as np
import pytest
from rich.console import Console

from dsjax.cli.benches import equal_layouts
from dsjax.cli.benches.equal_layouts import Stepper
from dsjax.config.parallel import ParallelConfig
from dsjax.errors import UserError
from dsjax.report.metrics import read_metrics
from dsjax.runtime import backend as backends
from dsjax.train import loop, pipelined, sharding
from tests.train.small_run import small_run, write_text

LAYOUTS = [
    ParallelConfig(pipe=2, schedule="dualpipe", data=2, expert=2),
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


@pytest.mark.slow
def test_checkpoints_of_a_pipeline_are_resumed_by_any_other_layout(tmp_path):
    text = write_text(tmp_path / "words.txt")

    def curve_to(name, *legs):
        for steps, layout, microbatches in legs:
            run = small_run(tmp_path / name, text, 8)
            run = dataclasses.replace(
                run, parallel=layout, output=dataclasses.replace(run.output, save_every=0),
                train=dataclasses.replace(run.train, steps=steps, microbatches=microbatches),
                loss=dataclasses.replace(run.loss, mtp_late_from=1.0, bias_until=1.0))
            outcome = loop.train(run, Console(file=io.StringIO()))
        events = read_metrics(outcome.out / "metrics.jsonl", "train")
        keys = ("loss", "mtp_loss", "balance", "max_vio", "grad_norm")
        return np.array([[e[key] for key in keys] for e in events])

    still = curve_to("still", (8, ParallelConfig(), 1))
    moving = curve_to("moving", (3, ParallelConfig(pipe=2, schedule="dualpipe"), 4),
                      (5, ParallelConfig(data=2, expert=2), 1),
                      (8, ParallelConfig(pipe=2, schedule="zb-h1", expert=2), 2))
    # roundings of float32 sums and of bfloat16 moments, as in test_spread
    np.testing.assert_allclose(moving, still, rtol=1e-5)


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
