"""The log of a task: a line of JSON an item, written as it comes and read again after a stop.

Each line has the item's number and a fingerprint of all that was asked; a line of another question
is refused, one that was cut off while it was written is dropped. When a task is done its lines are
put into the order of the items, so that an interrupted evaluation leaves the bytes of one that was
not.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dsjax import disk
from dsjax.errors import UserError
from dsjax.evaluate.tasks.task import Item, Task, continuations

SETTINGS = "settings.json"
Record = dict[str, Any]


def fingerprint(task: Task, item: Item) -> str:
    """Sixteen hex digits of everything that an item asks and expects."""
    question = item.question
    asked = [item.prompt, continuations(task, question), question.target, question.gold,
             sorted(question.facts.items())]
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:16]


class Journal:
    """The items of a task that have been answered, in a file."""

    def __init__(self, path: Path, task: Task, items: Sequence[Item]) -> None:
        """Read what the file has of these items."""
        self.path = path
        self._prints = {item.index: fingerprint(task, item) for item in items}
        self.records: dict[int, Record] = {}
        """Records by item."""
        self._others: list[Record] = []  # of items beyond the limit
        self._remedy = f"remove it to ask {task.name} again, or name another --out"
        if path.exists():
            self._read()
        disk.make_folder(path.parent, "name another --out")
        self._file = path.open("a", encoding="utf-8")

    def _read(self) -> None:
        data = disk.read_bytes(self.path, self._remedy, limit=1 << 36)
        whole = data[: data.rfind(b"\n") + 1]
        for number, line in enumerate(whole.splitlines(), 1):
            where = f"{self.path} line {number}"
            record = disk.parse_json(line, where, self._remedy)
            if not isinstance(record, dict) or not isinstance(record.get("index"), int):
                raise UserError(f"{where} is no record of an item; {self._remedy}")
            known = self._prints.get(record["index"])
            if known is None:
                self._others.append(record)
            elif record.get("asked") != known:
                raise UserError(f"{where} answers another question than item {record['index']} of "
                                f"the data (they differ in prompt or answer); {self._remedy}")
            else:
                self.records[record["index"]] = record
        if len(whole) < len(data):
            disk.write_whole(self.path, whole)

    def add(self, item: Item, record: Mapping[str, Any]) -> None:
        """Write the record of an item."""
        full = {"index": item.index, "id": item.question.id, "asked": self._prints[item.index],
                **({"group": item.question.group} if item.question.group else {}), **record}
        self._file.write(_line(full))
        self._file.flush()
        self.records[item.index] = full

    def close(self, is_done: bool) -> None:
        """Close the file, if it is open; when all items are there, in their order."""
        if self._file.closed:
            return
        self._file.close()
        if is_done:
            ordered = sorted([*self.records.values(), *self._others], key=lambda r: r["index"])
            disk.write_whole(self.path, "".join(map(_line, ordered)))


def _line(record: Record) -> str:
    return disk.to_json(record) + "\n"


def agree(out: Path, model: Mapping[str, Any], tasks: Mapping[str, Mapping[str, Any]]) -> None:
    """Hold settings against those that a folder's results were made with, and keep them there.

    Refuses a model or a task's settings that differ; tasks that are new are added.
    """
    path = out / SETTINGS
    kept: dict[str, Any] = {"model": dict(model), "tasks": {}}
    if path.exists():
        kept = disk.read_object(path, "remove it with the results beside it, or name another --out")
        if (said := _difference(kept.get("model"), model)) is not None:
            raise UserError(f"{out} holds results of another model ({said}); name another --out")
    there = kept.setdefault("tasks", {})
    for name, settings in tasks.items():
        if name in there and (said := _difference(there[name], settings)) is not None:
            raise UserError(f"{out} holds results of {name} with {said}; give the same settings, "
                            f"name another --out, or remove {name}.jsonl and {name} from {path}")
        there[name] = dict(settings)
    disk.make_folder(out, "name another --out")
    disk.write_json(path, kept)


def _difference(there: Any, here: Mapping[str, Any]) -> str | None:
    """The first setting that differs, as `shots 5, not 0`."""
    if not isinstance(there, dict):
        return "nothing known of it"
    for name in [*here, *there]:
        if there.get(name) != json.loads(json.dumps(here.get(name))):
            return f"{name} {there.get(name)}, not {here.get(name)}"
    return None
