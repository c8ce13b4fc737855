"""A run loses its processes, or is told to stop, and goes on as if nothing had been.

The processes are real. One that is killed says nothing: the others find out by themselves.
"""

import dataclasses
import signal
import time
from pathlib import Path

import pytest

from dsjax.checkpoint import files
from dsjax.config.parallel import ParallelConfig
from dsjax.train import heartbeat
from tests.train import crew

LONG = 100_000


def run_on(folder, processes, save_every=0, length=LONG):
    run = crew.run_on(folder, "run", ParallelConfig(data=processes), length, crew.DENSE)
    return crew.lasting(run, length, save_every)


def left_well(others, gone, count, killed_at):
    """All of them named the process that is gone, and left in time with the status for it."""
    said = [p.communicate(timeout=90)[0] for p in others]
    assert time.monotonic() - killed_at < 60
    assert [p.returncode for p in others] == [3] * len(others), "\n".join(said)
    for words in said:
        assert f"process {gone} of {count} cannot be heard any more" in words


def lose(run, count, gone):
    """Start a run, kill one of its processes, see the others off; return what it had reported."""
    processes = crew.start(run, count)
    try:
        newest = max(run.output.save_every, 1)
        crew.wait_for_step(run, newest + 2, processes)
        processes[gone].kill()
        killed_at = time.monotonic()
        left_well([p for i, p in enumerate(processes) if i != gone], gone, count, killed_at)
    finally:
        crew.end(processes)
    return crew.steps(run)


@pytest.mark.slow
@pytest.mark.exhaustive  # most of it is waiting for a heartbeat that does not come
def test_when_the_coordinator_is_killed_the_other_names_it_and_leaves(tmp_path):
    lose(run_on(tmp_path, 2), 2, gone=0)


@pytest.mark.slow
@pytest.mark.exhaustive  # what one process failed of, the others repeat: below
def test_bad_input_ends_every_process_with_a_sentence(tmp_path):
    run = run_on(tmp_path, 2)
    run = dataclasses.replace(run, data=dataclasses.replace(run.data, train="nowhere.txt"))
    processes = crew.start(run, 2)
    said = [p.communicate(timeout=60)[0] for p in processes]
    assert {p.returncode for p in processes} <= {2, heartbeat.LEFT}
    assert all("nowhere.txt" in words and "Traceback" not in words for words in said), said


def test_what_one_process_failed_of_the_others_repeat(tmp_path):
    earlier = heartbeat.Peers(tmp_path, 1, 2)
    earlier.fail("the disk is full")
    watcher, other = heartbeat.Peers(tmp_path, 0, 2), heartbeat.Peers(tmp_path, 1, 2)
    assert watcher.failed() is None  # that was another start
    other.beat()
    assert watcher.failed() is None
    other.fail("books.txt is empty")
    said = watcher.failed()
    assert said == "process 1 of 2 failed, so process 0 leaves: books.txt is empty"


@pytest.mark.slow
@pytest.mark.exhaustive
def test_when_one_of_four_is_killed_all_others_name_it_and_leave(tmp_path):
    lose(run_on(tmp_path, 4), 4, gone=1)


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize("gone", [0, 1])
def test_started_again_after_a_kill_nothing_is_lost_but_the_steps_since(gone, tmp_path):
    run = run_on(tmp_path, 2, save_every=50)
    before = lose(run, 2, gone)
    saved = files.steps(tmp_path / "run" / "checkpoints")[-1]
    assert before[-1]["step"] > saved >= 50
    again = crew.lasting(run, before[-1]["step"])
    said = crew.finish(crew.start(again, 2))
    assert f"resuming after step {saved}" in said[0]
    assert crew.steps(again) == before


def told_to_stop(run, count, numbers):
    """Send SIGTERM to some of the processes: all save the same step and leave."""
    processes = crew.start(run, count)
    try:
        crew.wait_for_step(run, 2, processes)
        for number in numbers:
            processes[number].send_signal(signal.SIGTERM)
        said = [p.communicate(timeout=60)[0] for p in processes]
    finally:
        crew.end(processes)
    assert [p.returncode for p in processes] == [128 + signal.SIGTERM] * count, "\n".join(said)
    done = crew.steps(run)[-1]["step"]
    assert f"SIGTERM: saved after step {done}" in said[0]
    assert files.steps(Path(run.output.folder) / "checkpoints") == [done]


@pytest.mark.slow
@pytest.mark.parametrize("numbers", [(1,), pytest.param((0, 1), marks=pytest.mark.exhaustive)])
def test_sigterm_to_any_process_saves_and_ends_all(numbers, tmp_path):
    told_to_stop(run_on(tmp_path, 2), 2, numbers)
