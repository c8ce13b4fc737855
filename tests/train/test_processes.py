"""Two processes train what one does; when one is killed, the other says so and leaves.

The processes are real and talk over localhost.
"""

import dataclasses
import os
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from dsjax.config.parallel import ParallelConfig
from dsjax.config.stored import run_to_json
from dsjax.train.metrics import read_metrics
from tests.train.small_run import small_run, write_text

CHILD = """
import sys
from dsjax.cli import main
from dsjax.config import load
load.load = load.run_from_json
sys.exit(main.main(["train", *sys.argv[1:]]))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    write_text(folder / "words.txt")
    return folder


def started(run, folder, count, *flags):
    """Start `count` processes of a run, each with its share of the layout's devices."""
    config = folder / f"{run.place.out.rpartition('/')[2]}.json"
    run_to_json(run, config)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    env = os.environ | {"JAX_NUM_CPU_DEVICES": str(run.parallel.devices // count)}
    processes = []
    for i in range(count):
        who = ["--coordinator", address, "--processes", str(count), "--process", str(i)]
        words = [sys.executable, "-c", CHILD, str(config), *flags, *(who if count > 1 else [])]
        processes.append(subprocess.Popen(words, env=env, text=True, stdout=subprocess.PIPE,
                                          stderr=subprocess.STDOUT))
    return processes


def run_on(folder, name, layout, steps):
    run = small_run(folder / name, folder / "words.txt", steps)
    place = dataclasses.replace(run.place, save_every=4, eval_every=0)
    loss = dataclasses.replace(run.loss, mtp_late_from=1.0, bias_until=1.0)
    return dataclasses.replace(run, parallel=layout, place=place, loss=loss)


def finish(processes):
    said = [p.communicate(timeout=240)[0] for p in processes]
    assert [p.returncode for p in processes] == [0] * len(processes), "\n".join(said)
    return said


def curve(folder, name):
    events = read_metrics(folder / name / "metrics.jsonl", "train")
    return np.array([[e["next_token"], e["mtp_loss"], e["grad_norm"]] for e in events])


@pytest.mark.slow
def test_two_processes_train_what_one_does_and_one_goes_on_from_them(folder):
    layout = ParallelConfig(data=2, expert=2)
    alone = run_on(folder, "one", ParallelConfig(), 6)
    finish(started(alone, folder, 1))
    both = run_on(folder, "two", layout, 4)
    said = finish(started(both, folder, 2))
    assert "processes" in said[0]
    lines = [line for line in said[1].splitlines() if line and "peer ranks" not in line]
    assert len(lines) <= 3, lines  # gloo's greetings, torn where both processes write
    # rounding of float32 sums and of bfloat16 moments, as in test_spread
    np.testing.assert_allclose(curve(folder, "two"), curve(folder, "one")[:4], rtol=1e-5)
    more = dataclasses.replace(both, train=dataclasses.replace(both.train, steps=6))
    said = finish(started(more, folder, 1))
    assert "resuming after step 4" in said[0]
    np.testing.assert_allclose(curve(folder, "two"), curve(folder, "one"), rtol=1e-5)


@pytest.mark.slow
def test_when_one_process_is_killed_the_other_names_it_and_leaves(folder):
    run = run_on(folder, "killed", ParallelConfig(data=2), 100_000)
    first, second = started(run, folder, 2)
    path = folder / "killed" / "metrics.jsonl"
    until = time.monotonic() + 200
    while time.monotonic() < until and not (path.exists() and read_metrics(path, "train")):
        assert first.poll() is None, first.communicate()[0]
        time.sleep(0.1)
    second.send_signal(signal.SIGKILL)
    killed = time.monotonic()
    said = first.communicate(timeout=90)[0]
    assert time.monotonic() - killed < 60
    assert first.returncode == 3
    assert "process 1 of 2 cannot be heard any more" in said
    second.communicate()
