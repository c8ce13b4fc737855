"""Every task by name."""

from __future__ import annotations

from dsjax.config.fields import did_you_mean
from dsjax.config.rl import RLConfig
from dsjax.errors import UserError
from dsjax.rl.tasks import arithmetic, countdown, digits, files, steps, task
from dsjax.rl.tasks.task import Problem, Split, Task

TASKS: dict[str, Task] = {one.name: one for one in (
    digits.SUM, digits.PARITY, arithmetic.REVERSED, arithmetic.ADDITION, arithmetic.MULTIPLICATION,
    steps.CHAIN, steps.SORTING, steps.LOGIC, countdown.COUNTDOWN)}


def find(name: str, template: str = "plain", split: Split | None = None) -> Task:
    """Return the task of a name, or of a file's problems; refuses another.

    template and split are a file's (dsjax.rl.tasks.files).
    """
    if name in TASKS:
        return TASKS[name]
    if files.is_file(name):
        return files.read(name, template, split)
    raise UserError(f"there is no task {name[:60]!r}{did_you_mean(name, TASKS)}; choose from "
                    f"{', '.join(TASKS)}, or name a file of problems ending in .jsonl")


def taught(cfg: RLConfig) -> Task:
    """The task of a config; all problems of a file are for training where another is the exam.

    Raises:
        UserError: there is no such, or it has questions without an answer and nothing judges them.
    """
    found = find(cfg.task, cfg.template, None if cfg.exam is None else "train")
    unjudged = [one for one in found.rows if not one.reference]
    if unjudged and cfg.preference is None:
        raise UserError(f"{len(unjudged)} questions of {found.source} have no answer "
                        f"({unjudged[0].prompt[:40]!r} is one), and no rule judges them; name a "
                        "preference model by --rl.preference, or take them out")
    return found


def examined(cfg: RLConfig, seed: int) -> list[Problem]:
    """Problems of a config's exams, held out of its task or of a file of their own."""
    asked = taught(cfg) if cfg.exam is None else find(cfg.exam, cfg.template, "held_out")
    asked = files.judged_by_rules(asked)
    return task.exam(asked, cfg.level, cfg.eval_prompts, seed)
