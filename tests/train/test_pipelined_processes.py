"""A pipeline whose ranks lie in different processes trains what one device does, and goes on with
what one device began.

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

DENSE = dataclasses.replace(crew.DENSE, layers=2, dense_layers=2)
"""Two stages whose programs are small: what layers compute is no matter here."""


@pytest.mark.slow
@pytest.mark.exhaustive  # test_pipelined.py has the ranks on devices of one process
def test_two_processes_are_the_ranks_of_a_pipeline(tmp_path):
    alone = crew.run_on(tmp_path, "alone", ParallelConfig(), 3, DENSE)
    crew.here(alone)
    run = crew.run_on(tmp_path, "piped", ParallelConfig(pipe=2, schedule="1f1b"), 3, DENSE)
    run = dataclasses.replace(run, train=dataclasses.replace(run.train, microbatches=2))
    crew.here(crew.lasting(dataclasses.replace(alone, output=run.output), 1))
    assert "resuming after step 1" in crew.finish(crew.start(run, 2))[0]
    # rounding of float32 sums and of bfloat16 moments, as in test_spread
    np.testing.assert_allclose(crew.curve(run), crew.curve(alone), rtol=1e-5)
    assert crew.heldout(run)[0] == pytest.approx(crew.heldout(alone)[0], rel=1e-5)


def test_rows_that_the_devices_of_several_processes_cannot_share_are_refused(monkeypatch, tmp_path):
    run = crew.run_on(tmp_path, "odd", ParallelConfig(pipe=4), 1, DENSE)
    train = dataclasses.replace(run.train, batch_size=6, microbatches=6)
    run = dataclasses.replace(run, train=train)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(UserError, match=r"6 rows do not divide over 4;.*batch-size 8"):
        pipelined.check(run)
