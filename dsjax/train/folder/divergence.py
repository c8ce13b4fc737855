"""Gradients that stay non-finite: checkpoints that are proven, and an end that trains on.

The update that ruins a run has a finite gradient itself: its parameters are found bad one step
later. So the state after step n is proven good only when a gradient from it was finite. Until then
no older checkpoint is removed, and while steps are skipped none is written but the last.

A run that gives up sets the unproven checkpoints aside (`diverged-N`), so that the same command
with a lower rate goes on from a good one, and started again without it loses nothing. `proven` in
the folder says how far they are known to be good: those are never set aside.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from dataclasses import dataclass

import jax

from dsjax import disk
from dsjax.checkpoint import files, multihost
from dsjax.checkpoint.store import Store
from dsjax.errors import UserError

GIVE_UP_AFTER = 10
"""Non-finite steps in a row that end a run."""
PROVEN, ASIDE = "proven", "diverged-"


@dataclass
class Proof:
    """The knowledge of a run's checkpoints while it trains."""

    store: Store
    resumed: int | None
    waiting: int | None = None
    """The checkpoint that a finite gradient would prove."""
    in_row: int = 0
    """Steps skipped since the last finite gradient."""

    def begin(self) -> None:
        """Take over what an earlier start knew; of a run begun anew, nothing."""
        if jax.process_index() == 0:
            if self.resumed is None:
                (self.store.folder / PROVEN).unlink(missing_ok=True)
            elif self._proven() > self.resumed:
                self._write(self.resumed)
        self.waiting = self.resumed

    def saved(self, step: int) -> None:
        """A checkpoint is being written."""
        self.waiting = step

    def stepped(self, number: int, in_row: int) -> None:
        """Step `number` was taken, or left out as the last of `in_row`: a finite one proves."""
        self.in_row = in_row
        if not in_row and self.waiting is not None and self.waiting < number:
            self.proven()

    def proven(self) -> None:
        """The newest checkpoint is good: those before it may go."""
        if self.waiting is not None and jax.process_index() == 0:
            self._write(self.waiting)
            self.store.prune()
        self.waiting = None

    def give_up(self, step: int) -> str:
        """Set aside what is not known to be better than the state after `step`; say what is left.

        The checkpoint that the run has resumed from stays if there is none before it.
        """
        self.store.wait()
        folder, good = self.store.folder, self._proven()
        there = files.steps(folder)
        multihost.meet()  # all have looked before the first renames
        bad = [one for one in there if one >= step and one > good]
        if bad == there and self.resumed in bad:
            bad.remove(self.resumed)
        if jax.process_index() == 0:
            for one in bad:
                _set_aside(self.store, one)
        left = [one for one in there if one not in bad]
        aside = f"; {', '.join(f'{ASIDE}{one:08d}' for one in bad)} there is not" if bad else ""
        if not left:
            return f"no checkpoint from before is in {folder}{aside}: the same command begins anew"
        if left[-1] >= step:
            return (f"checkpoint {left[-1]} in {folder}, from which this start went on, "
                    f"stays{aside}: if other settings lose its gradients, give those of before")
        return f"checkpoint {left[-1]} in {folder} is the last good one{aside}"

    def _proven(self) -> int:
        with contextlib.suppress(OSError, ValueError):
            return int((self.store.folder / PROVEN).read_bytes()[:32])
        return -1

    def _write(self, step: int) -> None:
        if self.store.folder.is_dir():
            disk.write_whole(self.store.folder / PROVEN, f"{step}\n")


def _set_aside(store: Store, step: int) -> None:
    """Move a checkpoint out of the sequence; of one step the first stays, for a look at it."""
    aside = store.folder / f"{ASIDE}{step:08d}"
    if aside.exists():
        shutil.rmtree(store.folder / files.name(step))
    else:
        os.rename(store.folder / files.name(step), aside)


def lost_gradients(proof: Proof, number: int, in_row: int) -> UserError:
    """The sentence of a run that gives up after step `number`, the last of `in_row` skipped."""
    left = proof.give_up(number - in_row)
    return UserError(
        f"{in_row} steps in a row had a non-finite gradient, the last is {number}; {left}; go on "
        "with a lower --learning-rate.peak, or look at the data")


def lost_model(proof: Proof, step: int) -> UserError:
    """The sentence of a run whose last step has ruined its parameters."""
    left = proof.give_up(step)
    return UserError(f"the held-out loss after the last step, {step}, is not finite; {left}; go on "
                     "with a lower --learning-rate.peak, or look at the data")
