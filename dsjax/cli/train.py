"""`dsjax train CONFIG`: train a model, or go on where its folder's newest checkpoint stops."""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING

from dsjax.errors import UserError
from dsjax.terminal import Console

if TYPE_CHECKING:  # the loop costs a second to import
    from dsjax.config.run import RunConfig
    from dsjax.train.loop import Outcome

USAGE = """usage: dsjax train CONFIG [--FIELD VALUE ...]

Train a model from a config: a name (tiny, small, ...) or a Python file with one config(). Any field
can be overridden, typed and checked; `dsjax train CONFIG --help` lists them all. The same command
started again goes on where the newest checkpoint stops. --devices N makes N virtual devices of a
CPU, to try a layout on. Compiled programs are kept in a cache folder of yours, so that the next
start is faster; --no-cache compiles anew.

  dsjax train tiny
  dsjax train tiny --train.steps 200 --train.precision fp32 --place.out runs/short
  dsjax train small --data.train 'books/*.txt.xz' --place.tensorboard
  dsjax train tiny --parallel.data 2 --parallel.expert 4 --devices 8
  dsjax train tiny --parallel.pipe 4 --parallel.schedule dualpipe --train.microbatches 8 \\
      --devices 8
  dsjax train tiny --parallel.expert 8 --coordinator node0:12345 --processes 2 --process 0
  dsjax train my.py --start-from runs/moonlight
"""


def run(argv: list[str]) -> int:
    """Train; returns the exit status (128 + the signal's number when one stopped the run)."""
    if argv[:1] in (["-h"], ["--help"]):
        print(USAGE, end="")
        return 0
    from dsjax.config import load
    from dsjax.parallel import launch

    flags = {}
    for name in ("coordinator", "processes", "process"):
        flags[name], argv = _take(argv, f"--{name}")
    devices, argv = _take(argv, "--devices")
    if devices is not None:
        make_devices(devices)
    launch.join(launch.find(os.environ, **flags))
    config = load.override(load.load(load.first(argv, "dsjax train")), argv[1:])
    import jax

    from dsjax.train import fellows, loop, platform

    platform.dispatch_inline()
    is_first = jax.process_index() == 0
    console = Console(file=None if is_first else open(os.devnull, "w"))  # noqa: SIM115
    try:
        outcome = loop.train(config, console)
    except UserError as error:
        if jax.process_count() > 1:
            fellows.leave(error)
        raise
    if outcome.signal is not None and not outcome.is_complete:
        return 128 + outcome.signal
    if is_first and not outcome.was_finished:
        report(config, outcome, {}, console)
    return 0


def make_devices(number: str) -> None:
    """Make so many virtual devices of the CPU, before JAX has looked for any."""
    if not number.isdecimal() or int(number) < 1:
        raise UserError(f"--devices {number!r} is not a number of devices; try --devices 8")
    import jax

    jax.config.update("jax_num_cpu_devices", int(number))


def _take(argv: list[str], flag: str) -> tuple[str | None, list[str]]:
    """Remove `flag VALUE`; return the value and what is left."""
    if flag not in argv:
        return None, argv
    at = argv.index(flag)
    return "".join(argv[at + 1 : at + 2]), argv[:at] + argv[at + 2 :]


def report(config: RunConfig, outcome: Outcome, baselines: dict[str, float],
           console: Console) -> None:
    """Say what a finished run found and where it lies, and draw its pictures."""
    from dsjax.train import loop

    drawn = loop.pictures(config, outcome, baselines)
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
