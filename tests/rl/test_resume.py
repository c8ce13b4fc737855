"""A run that stops and goes on is the run that never stopped, to the bit: policy, moments,
reference, questions, samples and what is written of them.
"""

import os
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from dsjax.checkpoint.store import Store
from dsjax.rl import update
from dsjax.train import sharding
from tests.rl import small
from tests.train import crew

CONFIG = "from tests.rl import small\n\n\ndef config():\n    return small.LEARNS\n"


def arrays(folder):
    """Everything in the newest checkpoint."""
    abstract = sharding.abstract(update.training_run(small.LEARNS), None)
    opened = Store(folder / "checkpoints", 9)
    try:
        step, state, _ = opened.restore({"train": abstract, "reference": abstract.params})
    finally:
        opened.close()
    return step, jax.device_get(state)


@pytest.mark.slow
def test_a_run_that_goes_on_is_the_run_that_never_stopped(whole, tmp_path):
    """It goes on after step 3, between two references, from a copy without what came after."""
    folder = tmp_path / "again"
    shutil.copytree(whole, folder)
    shutil.rmtree(folder / "checkpoints" / "step-00000004")
    (folder / "samples" / "step-000004.jsonl").unlink()
    said = small.teach(small.LEARNS, folder)
    assert "resuming after step 3" in said
    assert small.told_of(folder) == small.told_of(whole)
    (step, found), (_, wanted) = arrays(folder), arrays(whole)
    assert step == 4
    jax.tree.map(np.testing.assert_array_equal, found, wanted)


def start(folder, base):
    config = folder.parent / "config.py"
    config.write_text(CONFIG)
    env = os.environ | {"JAX_NUM_CPU_DEVICES": "1", "PYTHONPATH": str(crew.ROOT)}
    return subprocess.Popen(
        [sys.executable, "-m", "dsjax", "rl", str(config), "--init-from", str(base),
         "--output.folder", str(folder)], env=env, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, cwd=crew.ROOT)


def steps(folder):
    path = folder / "metrics.jsonl"
    return path.read_text().count('"kind": "train"') if path.exists() else 0


@pytest.mark.slow
@pytest.mark.exhaustive
def test_killed_at_any_moment_nothing_is_lost_but_the_step_under_way(whole, tmp_path):
    """Killed when one step is reported, and again when a second one is; then let alone."""
    calm, killed = tmp_path / "calm", tmp_path / "killed"
    process = start(calm, whole / "base")
    said, _ = process.communicate(timeout=600)
    assert process.returncode == 0, said
    for wanted in (1, 2):
        process = start(killed, whole / "base")
        until = time.monotonic() + 600
        while steps(killed) < wanted:
            assert process.poll() is None, process.stdout.read()
            assert time.monotonic() < until
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        saved = sorted((killed / "checkpoints").glob("step-*"))
        assert len(saved) >= wanted - 1
    process = start(killed, whole / "base")
    said, _ = process.communicate(timeout=600)
    assert process.returncode == 0, said
    assert small.told_of(killed) == small.told_of(calm)
    jax.tree.map(np.testing.assert_array_equal, arrays(killed)[1], arrays(calm)[1])
