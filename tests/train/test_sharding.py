"""A run may change its layout whenever it resumes, and its loss curve does not show it.

It goes into a mesh, into a pipeline, and out of it.
"""

import dataclasses
import io

import numpy as np
import pytest
from rich.console import Console

from dsjax.config.flags.commandline import override
from dsjax.config.parallel import ParallelConfig
from dsjax.config.stored import run_from_json, run_to_json
from dsjax.errors import UserError
from dsjax.report.metrics import read_metrics
from dsjax.train import loop, sharding
from tests.train.small_run import small_run, write_text

STEPS = 8


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return write_text(tmp_path_factory.mktemp("text") / "words.txt")


def run_to(folder, text, steps, layout, **train):
    """Train to a step, by rules that do not depend on which is the last."""
    run = small_run(folder, text, STEPS)
    run = dataclasses.replace(
        run,
        parallel=layout,
        output=dataclasses.replace(run.output, save_every=0, eval_every=4),
        train=dataclasses.replace(run.train, steps=steps, **train),
        loss=dataclasses.replace(run.loss, mtp_late_from=1.0, bias_until=1.0),
    )
    said = io.StringIO()
    outcome = loop.train(run, Console(file=said, width=300))
    return outcome, said.getvalue()


def curve(folder):
    events = read_metrics(folder / "metrics.jsonl", "train")
    return np.array([[e["loss"], e["mtp_loss"], e["balance"], e["max_vio"], e["grad_norm"]]
                     for e in events])


@pytest.mark.slow
@pytest.mark.exhaustive  # test_pipelined_processes.py goes from one device into a pipeline
def test_a_run_that_moves_between_layouts_keeps_its_loss_curve(tmp_path, text):
    still, moving = tmp_path / "still", tmp_path / "moving"
    outcome, _ = run_to(still, text, STEPS, ParallelConfig())
    _, said = run_to(moving, text, 3, ParallelConfig(data=2, expert=2))
    assert "data 2 x fsdp 1 x expert 2: 4 of 8 devices, ZeRO-1" in said
    assert "rows" in said
    assert "received over expert" in said
    _, said = run_to(moving, text, 5, ParallelConfig(pipe=2, schedule="dualpipe"), microbatches=4)
    assert "resuming after step 3" in said
    moved, said = run_to(moving, text, STEPS, ParallelConfig(fsdp=2), microbatches=2)
    assert "resuming after step 5" in said
    # A step adds a few float32 roundings of gradients, and each may turn the last bit of one of the
    # bfloat16 moments (2^-9 of it): 1e-5 of a gradient's norm bounds eight steps with room.
    np.testing.assert_allclose(curve(moving), curve(still), rtol=1e-5)
    assert moved.heldout.bits_per_byte == pytest.approx(outcome.heldout.bits_per_byte, rel=1e-5)
    events = read_metrics(moving / "metrics.jsonl", "train")
    assert ["extra_rounds" in e for e in events] == [True] * 3 + [False] * 5


def test_a_layout_is_named_on_the_command_line_and_kept_with_the_run(tmp_path, text):
    run = small_run(tmp_path, text)
    flags = ["--parallel.data", "2", "--parallel.expert=6", "--parallel.expert-nodes", "2"]
    run = override(run, flags)
    assert run.parallel == ParallelConfig(data=2, expert=6, expert_nodes=2)
    run_to_json(run, tmp_path / "config.json")
    assert run_from_json(tmp_path / "config.json") == run


def test_every_size_of_a_batch_ramp_must_divide(tmp_path, text):
    run = small_run(tmp_path, text)
    train = dataclasses.replace(run.train, batch_size=8, batch_size_start=4, batch_size_multiple=2,
                                batch_size_ramp_steps=4)
    run = dataclasses.replace(run, train=train, parallel=ParallelConfig(data=4))
    with pytest.raises(UserError, match=r"a batch of 2 rows does not divide over 4 devices"):
        sharding.open_mesh(run)


@pytest.mark.parametrize(("flags", "said"), [
    (["--train.seq-len", "1"], "rows of 1 tokens hold none.*--train.seq-len 2 or more"),
    (["--model.mtp-depth", "16"], "MTP module 16 .*--model.mtp-depth 15 or less"),
    (["--loss.device-balance", "0.05", "--model.moe.groups", "1", "--model.moe.groups-per-token",
      "1"], "constant without a gradient.*--loss.device-balance 0"),
])
def test_parts_that_could_never_learn_are_refused(flags, said, tmp_path):
    with pytest.raises(UserError, match=said):
        sharding.check(override(small_run(tmp_path, tmp_path), flags))
