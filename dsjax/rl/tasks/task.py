"""Problem of a task, the split it belongs to, and streams of problems.

An output is a response to a prompt that ends in "=". Short, it is ":" and the answer; long, the
trace stands before the colon. Both are right; a base is trained on a mixture of them, and RL on the
answer alone (dsjax.rl.rewards.answers.colon).
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from dsjax.errors import UserError

CHARACTERS = "0123456789+-*/=:,;()&|!>"
"""All that prompts, traces and answers consist of."""
HELD_OUT = 10
"""One problem of so many is held out."""
PATIENCE = 1000
"""Draws without a new problem, after which a level is found to have no more."""

Split = Literal["train", "held_out"]
Key = tuple[int | str, ...]


@dataclass(frozen=True)
class Problem:
    """A prompt and its responses."""

    prompt: str
    trace: str
    """Worked solution; it has no colon."""
    answer: str
    key: Key
    """Operands in an order of their own, equal for problems that give each other away."""
    reference: str
    """Text that the task's rule compares an output with; mostly the answer."""

    @property
    def short(self) -> str:
        """The response that guesses."""
        return f":{self.answer}"

    @property
    def long(self) -> str:
        """The response that works it out."""
        return f"{self.trace}:{self.answer}"


@dataclass(frozen=True)
class Task:
    """A kind of problem."""

    name: str
    source: str
    """Origin of its form, and the meaning of a level."""
    levels: range
    draw: Callable[[np.random.Generator, int], Problem]
    """Make a problem of a level."""
    rule: str = "colon"
    """Name of its reward (dsjax.rl.rewards.rules)."""
    rows: tuple[Problem, ...] = ()
    """All its problems, where it has so many and no more: those of a file."""
    split: Split | None = None
    """The split of all of them; None divides them by a hash."""

    @property
    def fingerprint(self) -> str:
        """A hash of its rows, which are not in the program; empty where it has none."""
        if not self.rows:
            return ""
        text = "\0".join(f"{one.prompt}\0{one.reference}" for one in self.rows)
        return hashlib.sha256(text.encode()).hexdigest()


def is_held_out(task: Task, key: Key) -> bool:
    """Decide a problem's split, by its operands alone."""
    if task.split is not None:
        return task.split == "held_out"
    digest = hashlib.sha256(f"{task.name} {key}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % HELD_OUT == 0


def problems(task: Task, level: int, split: Split, seed: int) -> Iterator[Problem]:
    """Draw problems of a split without end, the same for the same seed; some come again.

    Raises:
        UserError: a level that the task lacks, or that has no problem in this split.
    """
    if level not in task.levels:
        raise UserError(f"{task.name} has no level {level}; choose {task.levels[0]} to "
                        f"{task.levels[-1]}")
    if seed < 0:
        raise UserError(f"the seed of {task.name} is {seed}; use 0 or more")
    name = zlib.crc32(f"{task.name} {split}".encode())
    return _of_split(task, level, split, np.random.default_rng([seed, name, level]))


def _of_split(task: Task, level: int, split: Split, rng: np.random.Generator) -> Iterator[Problem]:
    missed = 0
    while True:
        drawn = task.draw(rng, level)
        if is_held_out(task, drawn.key) == (split == "held_out"):
            missed = 0
            yield drawn
        elif (missed := missed + 1) == PATIENCE:
            raise UserError(f"level {level} of {task.name} is too small to have problems in "
                            f"{split}; choose a higher level, up to {task.levels[-1]}")


def questions(task: Task, level: int, seed: tuple[int, ...], step: int,
              count: int) -> list[Problem]:
    """Return the problems of a training step, which follow from seed and step alone.

    Those of a file come once in an epoch each, in another order in the next.
    """
    if not task.rows:
        drawn = int(np.random.SeedSequence((*seed, step, 1)).generate_state(1)[0] >> 1)
        return list(itertools.islice(problems(task, level, "train", drawn), count))
    rows = [one for one in task.rows if not is_held_out(task, one.key)]
    if not rows:
        raise UserError(f"all {len(task.rows)} problems of {task.source} are held out; give more, "
                        "or another file for the exam (--rl.exam)")
    found = []
    for place in range(step * count, step * count + count):
        epoch, at = divmod(place, len(rows))
        found.append(rows[_order(len(rows), (*seed, epoch))[at]])
    return found


@functools.lru_cache(maxsize=2)
def _order(count: int, seed: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(seed).permutation(count)


def exam(task: Task, level: int, count: int, seed: int) -> list[Problem]:
    """Return held-out problems that differ in their prompts; those of a file in a drawn order.

    Raises:
        UserError: the level has fewer.
    """
    found: dict[str, Problem] = {}
    repeats = 0
    for problem in _of_file(task, seed) if task.rows else problems(task, level, "held_out", seed):
        repeats = repeats + 1 if problem.prompt in found else 0
        found.setdefault(problem.prompt, problem)
        if len(found) == count:
            return list(found.values())
        if repeats == PATIENCE:
            break
    raise UserError(f"level {level} of {task.name} has {len(found)} held-out problems, and {count} "
                    "are asked for; ask for fewer or choose a higher level")


def _of_file(task: Task, seed: int) -> Iterator[Problem]:
    """Held-out rows, each once: to draw them until all have come would miss some."""
    held = [one for one in task.rows if is_held_out(task, one.key)]
    for at in np.random.default_rng([seed, len(held)]).permutation(len(held)):
        yield held[at]


def documents(task: Task, level: int, long_share: float, seed: int) -> Iterator[str]:
    """Training problems with their responses, a share of them long: the text of a base.

    Raises:
        UserError: a share that is none, and as `problems`.
    """
    if not 0 <= long_share <= 1:
        raise UserError(f"long_share={long_share} is no share; use 0 to 1")
    rng = np.random.default_rng([seed, zlib.crc32(task.name.encode()), 1])
    for problem in problems(task, level, "train", seed):
        yield problem.prompt + (problem.long if rng.random() < long_share else problem.short)
