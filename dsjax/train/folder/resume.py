"""The start of a run: drawn, from the weights of a folder, or where it stopped."""

from __future__ import annotations

import dataclasses
import os
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh

from dsjax import disk, weights
from dsjax.checkpoint import files, manifest
from dsjax.checkpoint.store import Store
from dsjax.config.run import CHANGEABLE, IDENTITY, RunConfig, changes, difference
from dsjax.config.stored import run_from_json
from dsjax.data.loader import RowStream
from dsjax.errors import UserError
from dsjax.optim import schedule
from dsjax.report import metrics
from dsjax.train import sharding
from dsjax.train.folder import identity
from dsjax.train.state import TrainState

NO_OPTIMIZER = (
    "{out} holds parameters without an optimizer, as converted ones are, which a run starts from "
    "and does not go on with; train in another folder: {command}")
"""A refusal; the command is one that works."""
DATA_PATHS = ("train", "heldout", "tokenizer")
"""Fields of a run's data that say where it lies."""
Say = Callable[[str], Any]


def folder(run: RunConfig) -> Path:
    """Return the folder that a run writes; refused at once where none can be."""
    out = Path(run.output.folder or Path("runs") / run.name)
    try:
        nearest = next(path for path in (out, *out.parents) if path.exists())
    except (OSError, ValueError) as error:  # too long, or no path at all
        raise UserError(f"{out} cannot be a folder ({disk.cause(error).lower()}); name another "
                        "--output.folder") from None
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        why = "may not be written to" if nearest.is_dir() else "is a file"
        raise UserError(f"{out} cannot be made: {nearest} {why}; name another --output.folder")
    return out


def begin(run: RunConfig, say: Say, mesh: Mesh | None = None) -> TrainState:
    """Return the state before the first step, drawn or from weights of a released or a run folder.

    Weights come as float32 masters, each straight onto the devices where the run keeps it.
    """
    if run.init_from is None:
        return sharding.init(run, mesh)
    where = None if mesh is None else sharding.state_shardings(run, mesh).params
    start = weights.load(run.init_from, "float32", where, say=say,
                         choice=weights.Choice(model=run.model))
    say(f"starting from the parameters of {run.init_from}")
    if (Path(run.init_from) / "config.json").is_file():
        there = weights.model(run.init_from)
        if run.sft is not None and not run.model.mtp_depth:  # which is said with the examples
            there = dataclasses.replace(there, mtp_depth=0)
        others = changes(there, run.model, "model")
        if others:
            say(f"{run.init_from} was made with other settings than this run's "
                f"({', '.join(others)}): shapes agree, the numbers may mean something else")
    return sharding.begin(run, start, mesh)


def restore(
    run: RunConfig, store: Store, stream: RowStream, say: Say, mesh: Mesh | None = None
) -> tuple[int, TrainState, Any, np.ndarray | None]:
    """Step, state, average and loads since the last evaluation of the newest checkpoint.

    `stream` is moved to where the checkpoint was made; arrays come to where the mesh has them.
    """
    abstract: dict[str, Any] = {"train": sharding.abstract(run, mesh)}
    if run.optimizer.ema_decay:
        abstract["ema"] = abstract["train"].params
    number, saved, extra = store.restore(abstract, say=say)
    stream.restore(extra["stream"])
    say(f"resuming after step {number}")
    loads = None if extra["loads"] is None else np.asarray(extra["loads"], np.float32)
    return number, saved["train"], saved.get("ema"), loads


def is_start(folder: Path) -> bool:
    """True if the newest checkpoint of a folder has parameters alone, as converted ones."""
    checkpoints = folder / "checkpoints"
    try:
        newest = manifest.read(checkpoints / files.name(max(files.steps(checkpoints), default=0)))
    except manifest.Damaged:
        return False
    return all(name.startswith("params.") for name in newest.leaves)


def refuse_another(run: RunConfig, out: Path) -> None:
    """Refuse a folder with another run's checkpoints by the first field that differs.

    Before anything is written there. What the run was is read from its config.json, where a field
    that a later version has added takes its default: a run stays itself when the program grows.
    """
    kept = kept_config(out)
    if kept is None:
        return
    if is_start(out):
        again = ["dsjax", "train", str(out), "--output.folder", f"{out}-trained"]
        raise UserError(NO_OPTIMIZER.format(out=out, command=shlex.join(again)))
    if not run.output.resume:
        raise UserError(f"{out} already holds a run; name another --output.folder, or go on with "
                        "it: leave --output.no-resume out")
    if kept.data != run.data and _keeps_tokens(out):  # they are held, whatever their paths
        places = {name: getattr(run.data, name) for name in DATA_PATHS}
        kept = dataclasses.replace(kept, data=dataclasses.replace(kept.data, **places))
    for part in IDENTITY:
        said = difference(getattr(kept, part), getattr(run, part), part)
        if said is not None:
            raise UserError(
                f"the run in {out} was made with {said}; give the config it was made with, "
                "or another --output.folder"
            )


def _keeps_tokens(out: Path) -> bool:
    """True if the newest checkpoint that can be read keeps fingerprints of its data."""
    try:
        return identity.DATA in identity.kept(out)
    except UserError:  # none can be read: the fields of the config are all there is
        return False


def refuse_fewer_steps(run: RunConfig, out: Path) -> None:
    """Refuse to end a run before the checkpoint where it stands."""
    done = max(files.steps(out / "checkpoints"), default=0)
    if run.train.steps < done:
        raise UserError(
            f"--train.steps {run.train.steps} is below checkpoint {done}, where the run in {out} "
            f"stands; give at least {done}, or another --output.folder"
        )


def kept_config(out: Path) -> RunConfig | None:
    """The config of the run in a folder; None where there are no checkpoints yet."""
    if not files.steps(out / "checkpoints"):
        return None
    path = out / "config.json"
    if not path.exists():
        raise UserError(
            f"{out} holds checkpoints but no config.json, which says what they are of; put it back "
            "or name another --output.folder"
        )
    return run_from_json(path)


def changed(kept: RunConfig, run: RunConfig, step: int) -> list[str]:
    """Return a sentence for each setting that changes from a step on; the folder is none."""
    here = dataclasses.replace(kept.output, folder=run.output.folder, resume=run.output.resume)
    kept = dataclasses.replace(kept, output=here)
    found = [said for part in (*CHANGEABLE, "data")
             for said in changes(getattr(kept, part), getattr(run, part), part)]
    said = [f"{one} from step {step} on" for one in found]
    curve = schedule.changed((kept.learning_rate, kept.train.steps),
                             (run.learning_rate, run.train.steps), step)
    said += [curve] if curve is not None else []
    if run.init_from not in (None, kept.init_from):
        said.append(f"--init-from {run.init_from} is not read: the run goes on from its own "
                    "checkpoint")
    return said


def is_finished(run: RunConfig, out: Path) -> bool:
    """True if a run has taken all its steps, and every byte of its newest checkpoint is there."""
    if final_event(run, out) is None:
        return False
    checkpoints = out / "checkpoints"
    try:
        files.verify(checkpoints / files.name(max(files.steps(checkpoints))))
    except manifest.Damaged:  # the way of a run that goes on, which says so
        return False
    return True


def final_event(run: RunConfig, out: Path) -> dict[str, Any] | None:
    """Return the last evaluation of a run that has taken all its steps; None for others.

    The newest checkpoint must be there in full size; its bytes are not read.
    """
    checkpoints, source = out / "checkpoints", out / "metrics.jsonl"
    done = max(files.steps(checkpoints), default=-1)
    if done < run.train.steps or not source.is_file():
        return None
    where = checkpoints / files.name(done)
    try:
        listed = manifest.read(where).files
        is_whole = all((where / path).stat().st_size == size for path, (size, _) in listed.items())
    except (manifest.Damaged, OSError):
        return None
    finals = [e for e in metrics.read_metrics(source, "final") if e["step"] == done]
    return finals[-1] if is_whole and finals else None
