"""`dsjax train CONFIG`: train a model, or go on where its folder's newest checkpoint stops."""

from __future__ import annotations

import dataclasses
import math
import os
import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from dsjax.cli.process import devices
from dsjax.config import load
from dsjax.config.flags import commandline
from dsjax.config.flags.flag_tree import Mark, Word
from dsjax.config.run import RunConfig
from dsjax.errors import UserError, say

if TYPE_CHECKING:  # the loop costs a second to import
    from dsjax.terminal import Console
    from dsjax.train.outcome import Outcome

@dataclass(frozen=True)
class Train:
    """Train a model from a config, or go on with a run.

    The same command started again goes on where the newest checkpoint stops, and so does the folder
    of a run. With another --output.folder its settings are used anew; parameters that dsjax convert
    made are then what the run starts from. Any field of the run can be overridden, typed and
    checked; `dsjax train CONFIG --help` lists them all.

      dsjax train tiny
      dsjax train tiny --train.steps 200 --precision fp32 --output.folder runs/short
      dsjax train tiny --profile 3            (a trace of three steps, for Perfetto or TensorBoard)
      dsjax train small --data.train 'books/*.txt.xz' --output.tensorboard
      dsjax train tiny --parallel.data 2 --parallel.expert 4 --devices 8
      dsjax train tiny --parallel.pipe 4 --parallel.schedule dualpipe --train.microbatches 8 \\
          --devices 8
      dsjax train tiny --parallel.expert 8 --coordinator node0:12345 --processes 2 --process 0
      dsjax train my.py --init-from runs/moonlight
      dsjax train runs/moonlight --output.folder runs/tuned --data.train 'books/*.txt'
    """

    config: Annotated[str, Word("CONFIG")]
    """A name (tiny, small, ...), a Python file with one config(), or the folder of a run."""
    run: Annotated[RunConfig, Mark.INLINE]
    devices: int | None = None
    """Make so many virtual devices of the CPU, to try a layout on."""
    coordinator: str | None = None
    """HOST:PORT of the first of several processes."""
    processes: int | None = None
    """Number of processes."""
    process: int | None = None
    """Number of this process, from 0."""
    cache: bool = True
    """Keep compiled programs in a cache folder of yours, so that the next start is faster."""


def main(args: Train) -> int:
    """Train; returns the exit status (128 + the signal's number when one stopped the run)."""
    config = chosen(args)
    if config.rl is not None:
        raise UserError(f"{args.config} is a run of reinforcement learning, whose base dsjax rl "
                        f"trains; use dsjax rl {shlex.quote(args.config)}")
    if args.devices is not None:
        devices.make(args.devices)
    joined = devices.join(args.coordinator, args.processes, args.process)
    from dsjax.train import heartbeat

    try:
        return _train(config)
    except UserError as error:
        if joined is not None:
            heartbeat.leave(error)
        raise


def _train(config: RunConfig) -> int:
    """Train on the devices there are, and tell from the first process."""
    devices.require()
    import jax

    from dsjax.runtime import cpu
    from dsjax.terminal import Console
    from dsjax.train import loop

    cpu.dispatch_inline()
    is_first = jax.process_index() == 0
    console = Console(file=None if is_first else open(os.devnull, "w"))  # noqa: SIM115
    outcome = loop.train(config, console)
    if outcome.signal is not None and not outcome.is_complete:
        return 128 + outcome.signal
    if is_first and not outcome.was_finished:
        report(config, outcome, {}, console)
    return 0


def chosen(args: Train) -> RunConfig:
    """The run to train. One given as a folder goes on there, or in another folder anew.

    Parameters that came without an optimizer, as converted ones, are another run's start.
    """
    config, folder = args.run, load.folder_of(args.config)
    if folder is None:
        return config
    from dsjax.train.folder import resume

    is_here = os.path.realpath(resume.folder(config)) == os.path.realpath(folder)
    is_start = resume.is_start(folder)
    if is_here and is_start:
        typed = commandline.flags(load.load(args.config), config)
        again = ["dsjax", "train", args.config, *typed, "--output.folder", f"{folder}-trained"]
        raise UserError(resume.NO_OPTIMIZER.format(out=folder, command=shlex.join(again)))
    if is_here or config.init_from is not None:
        return config
    if is_start:
        return dataclasses.replace(config, init_from=str(folder))
    say(f"the settings of {folder}, and new parameters; add --init-from "
        f"{shlex.quote(str(folder))} to start from its own")
    return config


def report(config: RunConfig, outcome: Outcome, baselines: dict[str, float],
           console: Console) -> None:
    """Say what a finished run found and where it lies, and draw its pictures."""
    from dsjax.train import step_report as reports

    drawn = reports.pictures(config, outcome.out, baselines)
    if outcome.heldout is not None:
        found = outcome.heldout
        console.print(
            f"held out: {_bits(found.bits_per_byte)} over {found.targets:,} "
            f"tokens ({found.nll:.4f} nats a token)"
        )
    if outcome.heldout_average is not None:
        average = outcome.heldout_average
        console.print(f"averaged parameters: {_bits(average.bits_per_byte)}")
    for name, value in baselines.items():
        console.print(f"{name}: {value:.4f} bits per byte on the same blocks")
    files = [outcome.out / "checkpoints", outcome.out / "metrics.jsonl", *drawn]
    for path in files:
        console.print(f"  {path}")


def _bits(value: float) -> str:
    return f"{value:.4f} bits per byte" if math.isfinite(value) else "no bits per byte"
