"""A task's score on the items that the corpus has and on those that it has not.

Read from what `dsjax evaluate --out FOLDER` logs: TASK.jsonl, a line an item with its `id`, and
`measures` by name, or `answers` with a verdict by metric each.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsjax.data import readers
from dsjax.errors import UserError
from dsjax.evaluate.audit.findings import TaskDirt


@dataclass(frozen=True)
class Mean:
    """A mean over some items."""

    items: int
    value: float
    stderr: float
    """By the sample's deviation; NaN of fewer than two items."""

    @staticmethod
    def of(values: Sequence[float]) -> Mean:
        """Make the mean of the values."""
        count = len(values)
        if not count:
            return Mean(0, math.nan, math.nan)
        value = sum(values) / count
        if count < 2:
            return Mean(count, value, math.nan)
        variance = sum((one - value) ** 2 for one in values) / (count - 1)
        return Mean(count, value, math.sqrt(variance / count))

    def as_json(self) -> dict[str, Any]:
        """The mean for report.json."""
        return {"items": self.items} | {
            name: None if math.isnan(value) else value
            for name, value in (("value", self.value), ("stderr", self.stderr))}


@dataclass(frozen=True)
class Score:
    """A measure of a task on its parts."""

    task: str
    measure: str
    clean: Mean
    dirty: Mean

    def as_json(self) -> dict[str, Any]:
        """The score for report.json."""
        return {"task": self.task, "measure": self.measure, "clean": self.clean.as_json(),
                "dirty": self.dirty.as_json()}


def read(folder: Path, tasks: Sequence[TaskDirt]) -> list[Score]:
    """Read the scores of tasks; one that the folder has none of is passed over.

    Raises UserError where there is no task's log, or where it knows none of a task's items.
    """
    if not folder.is_dir():
        raise UserError(f"--scores {folder} is not a folder; name the --out of `dsjax evaluate`")
    made = []
    for task in tasks:
        path = _log(folder, task.name)
        if path is not None:
            made += _scores(path, task)
    if not made:
        names = ", ".join(f"{task.name}.jsonl" for task in tasks)
        raise UserError(f"--scores {folder} has no log of the audited tasks ({names}); name the "
                        "--out of `dsjax evaluate` with these tasks")
    return made


def _log(folder: Path, name: str) -> Path | None:
    """The log of a task, which may be called by the beginning of the name of its file."""
    while name:
        if (path := folder / f"{name}.jsonl").is_file():
            return path
        name = name[: max(name.rfind("-"), name.rfind("_"), 0)]
    return None


def _scores(path: Path, task: TaskDirt) -> list[Score]:
    dirty = {one.item.number for one in task.dirty}
    numbers: dict[str, list[int]] = {}
    for number, name in enumerate(task.ids):
        numbers.setdefault(name, []).append(number)
    values: dict[str, tuple[list[float], list[float]]] = {}
    for where, row in _in_order(path):
        if not numbers.get(row["id"]):
            raise UserError(f"{where} is of item {row['id'][:60]!r}, which {task.name} has not; "
                            "give the file that was evaluated as --against")
        number = numbers[row["id"]].pop(0)
        for name, value in _measures(row, where).items():
            values.setdefault(name, ([], []))[number in dirty].append(value)
    if not values:
        raise UserError(f"{path} holds no values; let `dsjax evaluate` finish")
    return [Score(task.name, name, Mean.of(clean), Mean.of(own))
            for name, (clean, own) in values.items()]


def _in_order(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """Records of a log in the order of the items, so that equal names are told apart by it."""
    found = []
    for _, where, row in readers.rows(path):
        if not isinstance(row, dict) or not isinstance(row.get("id"), str):
            raise UserError(f"{where} is no record of an item; give what `dsjax evaluate` wrote")
        found.append((where, row))
    return sorted(found, key=lambda one: one[1].get("index", 0))


def _measures(row: Mapping[str, Any], where: str) -> dict[str, float]:
    """The values of an item by measure; of several answers the mean."""
    try:
        if "answers" in row:
            verdicts = [answer["verdicts"] for answer in row["answers"]]
            return {name: sum(bool(own[name]["is_right"]) for own in verdicts) / len(verdicts)
                    for name in verdicts[0]}
        return {name: float(value) for name, value in row.get("measures", {}).items()}
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        raise UserError(f"{where} has measures that are no numbers; give what `dsjax evaluate` "
                        "wrote") from None
