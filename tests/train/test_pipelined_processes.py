"""A pipeline whose ranks lie in different processes trains what one device does.

What it defends against: ranks that read different rows, because each process draws its own; weights
of a stage that are made whole in every process first.
"""

import dataclasses

import jax
import numpy as np
import pytest

from dsjax.config.parallel import ParallelConfig
from dsjax.errors import UserError
from dsjax.train import pipelined
from tests.train import crew
from tests.train.small_run import MODEL


@pytest.mark.slow
def test_two_processes_are_the_ranks_of_a_pipeline(tmp_path):
    alone = crew.run_on(tmp_path, "alone", ParallelConfig(), 3, MODEL)
    crew.here(alone)
    run = crew.run_on(tmp_path, "piped", ParallelConfig(pipe=2, schedule="1f1b"), 3, MODEL)
    run = dataclasses.replace(run, train=dataclasses.replace(run.train, microbatches=2))
    crew.finish(crew.start(crew.lasting(run, 2), 2))
    assert "resuming after step 2" in crew.here(dataclasses.replace(alone, output=run.output))
    # rounding of float32 sums and of bfloat16 moments, as in test_spread
    np.testing.assert_allclose(crew.curve(run), crew.curve(alone), rtol=1e-5)
    assert crew.heldout(run)[0] == pytest.approx(crew.heldout(alone)[0], rel=1e-5)


def test_rows_that_the_devices_of_several_processes_cannot_share_are_refused(monkeypatch, tmp_path):
    run = crew.run_on(tmp_path, "odd", ParallelConfig(pipe=4), 1, MODEL)
    train = dataclasses.replace(run.train, batch_size=6, microbatches=6)
    run = dataclasses.replace(run, train=train)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(UserError, match=r"6 rows do not divide over 4;.*batch-size 8"):
        pipelined.check(run)
