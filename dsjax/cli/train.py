"""`dsjax train CONFIG`: train a model, or go on where its folder's newest checkpoint stops."""

from __future__ import annotations

import dataclasses
import math
import os
import shlex
from typing import TYPE_CHECKING

from dsjax.cli.process import devices
from dsjax.errors import UserError, say
from dsjax.terminal import Console

if TYPE_CHECKING:  # the loop costs a second to import
    from dsjax.config.run import RunConfig
    from dsjax.train.loop import Outcome

USAGE = """usage: dsjax train CONFIG [--FIELD VALUE ...]

Train a model from a config: a name (tiny, small, ...), a Python file with one config(), or the
folder of a run. Any field can be overridden, typed and checked; `dsjax train CONFIG --help` lists
them all. The same command started again goes on where the newest checkpoint stops, and so does the
folder of a run. With another --output.folder its settings are used anew; parameters that dsjax
convert made are then what the run starts from. --devices N makes N virtual devices of a CPU, to try
a layout on. Compiled programs are kept in a cache folder of yours, so that the next start is
faster; --no-cache compiles anew.

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

LAUNCHED = ("coordinator", "processes", "process")


def run(argv: list[str]) -> int:
    """Train; returns the exit status (128 + the signal's number when one stopped the run)."""
    if argv[:1] in (["-h"], ["--help"]):
        print(USAGE, end="")
        return 0
    from dsjax.config import flags
    from dsjax.parallel import launch

    who = {}
    for name in LAUNCHED:
        who[name], argv = flags.take(argv, f"--{name}")
    count, argv = flags.take(argv, "--devices")
    config = read(argv)
    if count is not None:
        devices.make(count)
    joined = launch.find(os.environ, **who)
    launch.join(joined)
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

    from dsjax.runtime import platform
    from dsjax.train import loop

    platform.dispatch_inline()
    is_first = jax.process_index() == 0
    console = Console(file=None if is_first else open(os.devnull, "w"))  # noqa: SIM115
    outcome = loop.train(config, console)
    if outcome.signal is not None and not outcome.is_complete:
        return 128 + outcome.signal
    if is_first and not outcome.was_finished:
        report(config, outcome, {}, console)
    return 0


def read(argv: list[str]) -> RunConfig:
    """The run of a command line. One given as a folder goes on there, or in another folder anew.

    Parameters that came without an optimizer, as converted ones, are another run's start.
    """
    from dsjax.config import load

    name = load.first(argv, "dsjax train")
    config = load.override(load.load(name), argv[1:],
                           own=["--devices", *(f"--{name}" for name in LAUNCHED)])
    folder = load.folder_of(name)
    if folder is None:
        return config
    from dsjax.train.folder import resume

    is_here = os.path.realpath(resume.folder(config)) == os.path.realpath(folder)
    is_start = resume.is_start(folder)
    if is_here and is_start:
        again = ["dsjax", "train", *argv, "--output.folder", f"{folder}-trained"]
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
            f"tokens ({found.nats:.4f} nats a token)"
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
