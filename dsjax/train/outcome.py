"""Result of a run, and of one that was started again when it was over."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dsjax.config.run import RunConfig
from dsjax.evaluate import heldout
from dsjax.evaluate.heldout import Heldout
from dsjax.terminal import Console
from dsjax.train.folder import resume


@dataclass(frozen=True)
class Outcome:
    """Result of a run."""

    out: Path
    step: int
    is_complete: bool
    heldout: Heldout | None
    heldout_average: Heldout | None
    signal: int | None = None
    was_finished: bool = False
    """Nothing was left to do: nothing was done, and the folder is as it was."""


def finished(run: RunConfig, out: Path, console: Console) -> Outcome:
    """Say that a run is over, and what it had found."""
    event = resume.final_event(run, out) or {}
    step, asked = event.get("step", run.train.steps), run.train.steps
    so_far = (f"finished after step {step}" if step == asked else
              f"at step {step}, past --train.steps {asked}")
    console.print(f"{out} holds this run {so_far}: there is nothing to do (--train.steps above "
                  f"{step} would go on)")
    return Outcome(out, step, True, *heldout.recorded(event), was_finished=True)
