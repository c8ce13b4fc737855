"""`dsjax rl CONFIG`: teach a model by rewards, or go on where its folder's checkpoint stops."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from dsjax.cli.process import devices
from dsjax.config.flags.flag_tree import Mark, Word
from dsjax.config.run import RunConfig
from dsjax.errors import UserError

if TYPE_CHECKING:  # the loop costs a second to import
    from dsjax.rl.loop import Outcome
    from dsjax.terminal import Console


@dataclass(frozen=True)
class Rl:
    """Teach a model by rewards, GRPO from rules, or go on with a run.

    Without --init-from a base is pre-trained first, on problems with short and worked solutions.
    The same command started again goes on where the newest checkpoint stops. Any field of the run
    can be overridden; `dsjax rl CONFIG --help` lists them all, those of this command under --rl.

      dsjax rl r1_zero_tiny
      dsjax rl r1_zero_tiny --init-from runs/r1_zero_tiny/base --output.folder runs/again --seed 1
      dsjax rl r1_zero_tiny --rl.aggregation constant --rl.advantage centered  (Dr. GRPO)
      dsjax rl r1_zero_tiny --parallel.data 2 --parallel.expert 4 --devices 8
    """

    config: Annotated[str, Word("CONFIG")]
    """A name (r1_zero_tiny), a Python file with one config(), or the folder of a run."""
    run: Annotated[RunConfig, Mark.INLINE]
    devices: int | None = None
    """Make so many virtual devices of the CPU, to try a layout on."""
    cache: bool = True
    """Keep compiled programs in a cache folder of yours, so that the next start is faster."""


def main(args: Rl) -> int:
    """Teach; returns the exit status (128 + the signal's number when one stopped the run)."""
    if args.devices is not None:
        devices.make(args.devices)
    devices.require()
    if args.run.sft or args.run.lora or args.run.experts:
        raise UserError("rewards teach all of a model, not a part of it or examples; leave --sft, "
                        "--lora and --experts out, and begin with a tuned model by --init-from")
    from dsjax.rl import loop
    from dsjax.terminal import Console

    console = Console()  # programs run beside the host, which prepares the engine's next step
    outcome = loop.reinforce(args.run, console)
    if outcome.signal is not None and not outcome.is_complete:
        return 128 + outcome.signal
    if not outcome.was_finished:
        _tell(outcome, console)
    return 0


def _tell(outcome: Outcome, console: Console) -> None:
    """Say what a run came to and where it lies."""
    if outcome.base is not None and outcome.final is not None:
        begun, ended = outcome.base, outcome.final
        console.print(f"held out, greedy {begun.greedy:.3f} -> {ended.greedy:.3f}, sampled "
                      f"{begun.sampled:.3f} -> {ended.sampled:.3f}; mean length "
                      f"{begun.length:.1f} -> {ended.length:.1f} tokens")
    for name in ("checkpoints", "metrics.jsonl", "samples"):
        console.print(f"  {outcome.out / name}")
