"""Every task by name."""

from __future__ import annotations

from dsjax.config.fields import did_you_mean
from dsjax.errors import UserError
from dsjax.rl.tasks import arithmetic, countdown, digits, steps
from dsjax.rl.tasks.task import Task

TASKS: dict[str, Task] = {task.name: task for task in (
    digits.SUM, digits.PARITY, arithmetic.REVERSED, arithmetic.ADDITION, arithmetic.MULTIPLICATION,
    steps.CHAIN, steps.SORTING, steps.LOGIC, countdown.COUNTDOWN)}


def find(name: str) -> Task:
    """Return the task of a name; refuses another."""
    if name in TASKS:
        return TASKS[name]
    raise UserError(f"there is no task {name[:60]!r}{did_you_mean(name, TASKS)}; choose from "
                    f"{', '.join(TASKS)}")
