"""`dsjax sft FOLDER --data FILE`: tune a model on examples, whole or a part of it."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from dsjax.cli.process import devices
from dsjax.config import load
from dsjax.config.flags.flag_tree import Mark, Word
from dsjax.config.run import RunConfig
from dsjax.config.sft import ExpertsConfig, LoRAConfig
from dsjax.errors import UserError

if TYPE_CHECKING:  # the loop costs a second to import
    from dsjax.terminal import Console
    from dsjax.train.outcome import Outcome

BY_EPOCHS = 2**31 - 1
"""Steps of a run that nobody has said: they follow from the epochs."""


@dataclass(frozen=True)
class Sft:
    """Tune a model on examples: supervised fine-tuning of all of it, of adapters, or of experts.

    FOLDER is a run's or a released checkpoint, FP8 too. FILE has lines of JSON with prompt and
    completion, question and answer, or messages (.jsonl, .gz, .zst, .parquet). The same command
    started again goes on where the newest checkpoint stops. Without a flag of --lora or --experts
    all of the model learns; with one the rest is frozen. Steps follow from --sft.epochs, unless
    --train.steps says them.

      dsjax sft runs/first --data examples.jsonl
      dsjax sft runs/first --data examples.jsonl --lora.rank 16 --lora.alpha 32
      dsjax sft Moonlight-16B-A3B-Instruct --data examples.jsonl --lora.base fp8 --precision bf16
      dsjax sft runs/first --data examples.jsonl --experts.threshold 0.2
      dsjax sft runs/first --data examples.jsonl --lora.rank 16 --plan      (memory, by part)
    """

    folder: Annotated[Path, Word("FOLDER")]
    """The folder of a run, or of a released checkpoint."""
    run: Annotated[RunConfig, Mark.INLINE]
    plan: bool = False
    """Say what memory the tuning takes, part by part, and do nothing."""
    devices: int | None = None
    """Make so many virtual devices of the CPU, to try a layout on."""
    cache: bool = True
    """Keep compiled programs in a cache folder of yours, so that the next start is faster."""


def main(args: Sft) -> int:
    """Tune; returns the exit status (128 + the signal's number when one stopped the run)."""
    if args.devices is not None:
        devices.make(args.devices)
    devices.require()
    from dsjax.runtime import cpu
    from dsjax.terminal import Console
    from dsjax.train import loop, sharding
    from dsjax.train.folder import resume
    from dsjax.train.tuning import plan, recipe, rows

    console = Console()
    out = resume.folder(args.run)
    run = recipe.settled(args.run)
    if run.data.train is None:
        raise UserError("there is nothing to learn from; name a file of examples by --data FILE")
    sharding.check(dataclasses.replace(
        run, train=dataclasses.replace(run.train, steps=1)))
    rows.refuse(run, out)
    if run.train.steps == BY_EPOCHS:
        steps = rows.steps(run, out)
        run = dataclasses.replace(run, train=dataclasses.replace(run.train, steps=steps))
    if args.plan:
        console.print(plan.table(run))
        return 0
    cpu.dispatch_inline()
    outcome = loop.train(run, console)
    if outcome.signal is not None and not outcome.is_complete:
        return 128 + outcome.signal
    if not outcome.was_finished:
        _tell(outcome, console)
    return 0


def start(folder: str | None) -> RunConfig:
    """The run that tunes the model of a folder, before any flag.

    None stands for one in help, which shows the fields of both parts that may learn.
    """
    from dsjax.train.tuning import recipe

    if folder is None:
        run = recipe.of_model(load.load("tiny").model, "FOLDER", BY_EPOCHS)
        return dataclasses.replace(run, lora=LoRAConfig(), experts=ExpertsConfig())
    return recipe.start(Path(folder), BY_EPOCHS)


def _tell(outcome: Outcome, console: Console) -> None:
    """Say what a run came to and where it lies."""
    if outcome.heldout is not None and math.isfinite(outcome.heldout.nll):
        found = outcome.heldout
        console.print(f"held-out completions: {found.nll:.4f} nats a token over "
                      f"{found.targets:,} tokens")
    for name in ("checkpoints", "metrics.jsonl"):
        console.print(f"  {outcome.out / name}")
