"""A run that diverges keeps its good checkpoints, however often it is started, and can go on."""

import dataclasses
import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsjax.checkpoint import files
from dsjax.checkpoint.store import Store
from dsjax.config.parallel import ParallelConfig
from dsjax.config.schedule import LearningRate
from dsjax.errors import UserError
from dsjax.evaluate import heldout
from dsjax.train import state as states
from dsjax.train.folder.divergence import Proof
from tests.train import crew

WILD = LearningRate(peak=1e38, constant_steps=10**6)


def steps(run) -> list[int]:
    return files.steps(Path(run.output.folder) / "checkpoints")


def lines(run) -> list[dict]:
    path = Path(run.output.folder) / "metrics.jsonl"
    return [json.loads(x) for x in path.read_text().splitlines()]


def wild(run, length=60, save_every=1):
    return dataclasses.replace(crew.lasting(run, length, save_every), learning_rate=WILD)


@pytest.fixture
def run(tmp_path):
    return crew.run_on(tmp_path, "run", ParallelConfig(), 3, crew.DENSE)


def test_good_checkpoints_survive_restarts_and_the_advised_command_trains_on(run):
    run = dataclasses.replace(run, output=dataclasses.replace(run.output, keep=2))
    crew.here(crew.lasting(run, 3, 1))
    assert steps(run) == [2, 3]
    for _ in range(2):
        with pytest.raises(UserError, match=r"10 steps in a row .*checkpoint 3 .*rate.peak"):
            crew.here(wild(run))
        assert steps(run) == [2, 3]
        taken = [e for e in lines(run) if e["kind"] == "train"]
        assert [e["step"] for e in taken] == list(range(1, len(taken) + 1))
        assert sum(e["grad_norm"] is None for e in taken) == 10
    aside = {p.name for p in (Path(run.output.folder) / "checkpoints").glob("diverged-*")}
    assert aside == {"diverged-00000004"}  # written before the next step told
    crew.here(crew.lasting(run, 5, 1))
    taken = [e for e in lines(run) if e["kind"] == "train"]
    assert [e["step"] for e in taken] == [1, 2, 3, 4, 5]
    assert all(e["grad_norm"] is not None for e in taken)
    number, kept, _ = Store(Path(run.output.folder) / "checkpoints", 2).restore(
        {"train": states.abstract(run)})
    assert number == 5
    assert all(bool(jnp.isfinite(a).all()) for a in jax.tree.leaves(kept))
    assert int(kept["train"].skipped) == 0


def test_a_last_step_that_ruins_the_model_is_no_finished_run(run, monkeypatch):
    crew.here(crew.lasting(run, 2, 1))
    lost = heldout.Heldout(math.nan, math.nan, [], [], targets=9)
    monkeypatch.setattr(heldout, "evaluate", lambda *_: lost)
    with pytest.raises(UserError, match=r"held-out loss after the last step, 3, is not finite"):
        crew.here(crew.lasting(run, 3, 1))
    assert steps(run) == [1, 2]
    assert not [e for e in lines(run) if e["kind"] == "final"]


def test_a_run_ruined_by_its_first_step_begins_anew(run):
    with pytest.raises(UserError, match=r"no checkpoint from before .*begins anew"):
        crew.here(wild(run))
    assert steps(run) == []
    said = crew.here(run)
    assert "resuming" not in said
    assert [e["step"] for e in lines(run) if e["kind"] == "train"] == [1, 2, 3]


# What is known of checkpoints, without training


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "checkpoints", 2)
    yield store
    store.close()


def save(proof, *numbers):
    for number in numbers:
        proof.store.save(number, {"x": np.ones(2)}, {}, prune=False)
        proof.saved(number)
    proof.store.wait()


def kept(store) -> list[int]:
    store.close()
    return files.steps(store.folder)


def test_nothing_is_removed_before_the_newest_is_proven(store):
    proof = Proof(store, None)
    save(proof, 1, 2, 3)
    proof.stepped(4, 1)  # skipped
    assert files.steps(store.folder) == [1, 2, 3]
    proof.stepped(5, 0)  # from the same state: it was the data
    assert kept(store) == [2, 3]


def test_a_proven_checkpoint_is_never_set_aside(store):
    """Another precision, say, may lose every gradient of a good state."""
    proof = Proof(store, None)
    save(proof, 3)
    proof.stepped(4, 0)
    save(proof, 6)
    proof.stepped(7, 0)
    again = Proof(store, 6)
    again.begin()
    said = again.give_up(6)
    assert "checkpoint 6" in said
    assert "stays" in said
    assert kept(store) == [3, 6]


def test_a_checkpoint_that_was_resumed_from_unproven_gives_way_to_an_older(store):
    proof = Proof(store, None)
    save(proof, 3, 6)
    again = Proof(store, 6)
    again.begin()
    assert "checkpoint 3" in again.give_up(6)
    last = Proof(store, 3)  # the last there is stays: a run does not begin anew by itself
    last.begin()
    assert "checkpoint 3" in last.give_up(3)
    assert kept(store) == [3]


def test_what_was_proven_counts_no_further_than_what_is_there(store):
    proof = Proof(store, None)
    save(proof, 8)
    proof.proven()
    files.drop(store.folder, 8)
    save(proof, 3)
    again = Proof(store, 3)
    again.begin()
    save(again, 5)
    assert "checkpoint 3" in again.give_up(5)
    assert kept(store) == [3]


def test_of_one_step_set_aside_twice_the_first_stays(store):
    proof = Proof(store, None)
    for _ in range(2):
        save(proof, 1, 2)
        proof.give_up(2)
    assert kept(store) == [1]
    assert len(list(store.folder.glob("diverged-*"))) == 1
