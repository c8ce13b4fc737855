"""Base of a run: a model pre-trained on worked and guessed solutions, by the training loop itself.

The base must have both habits, to guess and to work a problem out, and when it works must be right
nearly always: then RL on the answer makes the longer way common. A base whose worked solutions are
wrong goes flat or collapses whatever the objective is, so it is trained on until they are right, or
refused.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

from dsjax import disk
from dsjax.config.run import RunConfig
from dsjax.errors import UserError
from dsjax.rl.exam import Exam
from dsjax.rl.tasks import catalog, task
from dsjax.rl.update import rl_of
from dsjax.terminal import Console
from dsjax.train import loop

TEXT = "text.jsonl"
LONGER, TIMES = 50, 8
"""A base that is not right yet is trained so many steps longer, at most so many times."""


def lengths(run: RunConfig) -> Iterator[int]:
    """Steps after which a base is examined."""
    yield from (run.train.steps + LONGER * i for i in range(TIMES + 1))


def train(run: RunConfig, folder: Path, steps: int, console: Console) -> None:
    """Pre-train up to a number of steps, or go on; nothing is done where they are taken already.

    A text that lies in the folder is taken as it is.

    Raises:
        UserError: the training was told to stop.
    """
    own = dataclasses.replace(
        run, name=f"{run.name} base", rl=None,
        train=dataclasses.replace(run.train, steps=steps),
        data=dataclasses.replace(run.data, train=str(folder / TEXT)),
        output=dataclasses.replace(run.output, folder=str(folder), eval_every=0,
                                   save_every=100, log_every=50))
    cfg = rl_of(run)
    if not (folder / TEXT).is_file():
        write(folder, run, task.documents(catalog.find(cfg.task), cfg.level, cfg.base_long,
                                          run.seed))
    outcome = loop.train(own, console)
    if not outcome.is_complete:
        raise UserError(f"the base stands at step {outcome.step} of {steps}; the same command goes "
                        "on from there")


def write(folder: Path, run: RunConfig, texts: Iterator[str]) -> None:
    """Write the text of a base, enough for its steps to see every document once."""
    disk.make_folder(folder, "name another --output.folder")
    held, parts = run.train.steps * run.train.batch_size * run.train.seq_len, []
    for text in texts:
        parts.append(json.dumps({"text": text}) + "\n")
        held -= len(text) + 1
        if held < 0:
            break
    disk.write_whole(folder / TEXT, "".join(parts), "make room or name another --output.folder")


def is_good(found: Exam, run: RunConfig) -> bool:
    """True if the worked solutions of a base are right often enough."""
    return found.right_long >= rl_of(run).base_right  # of none, NaN, is False


def refusal(found: Exam, run: RunConfig, steps: int) -> UserError:
    """Say why a base is no beginning."""
    return UserError(
        f"after {steps} steps of pre-training {found.right_long:.0%} of the worked solutions are "
        f"right ({found.long:.0%} of all outputs work), and RL from a base below "
        f"{rl_of(run).base_right:.0%} goes flat; give more --train.steps, or an easier --rl.level")


def remark(found: Exam) -> str:
    """Describe a base in a line."""
    return (f"base: {found.greedy:.3f} greedy, {found.sampled:.3f} sampled, {found.length:.1f} "
            f"tokens; {found.long:.0%} of outputs work, right {found.right_long:.3f} of the time, "
            f"the others {found.right_short:.3f}")
