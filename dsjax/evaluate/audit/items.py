"""Items of tasks, read from their public files as the texts that may stand in a corpus.

An item is the fields of a row that a reader sees: question, choices, answer. A row is told from
another by its name (`task_id`, `unique_id`, `id`, `ind`), else by the number of its line, as the
log of `dsjax evaluate` names it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsjax.data import readers
from dsjax.errors import UserError
from dsjax.evaluate.tasks import rows

NAMES = ("task_id", "unique_id", "id", "ind")
ASKED = ("question", "problem", "prompt", "query", "ctx", "text", "sentence", "passage")
OFFERED = ("choices", "endings", "options", "answers_text")
ANSWERED = ("answer", "solution", "code", "canonical_solution", "completion")
_ENDINGS = (".jsonl", ".ndjson", ".json")


@dataclass(frozen=True)
class Item:
    """One question of a task."""

    id: str
    fields: tuple[str, ...]
    """The texts it is made of, the question first."""
    number: int = 0
    """Its place in the task, from 0: names may stand twice, as HellaSwag's do."""

    @property
    def text(self) -> str:
        """All of it, as GPT-3 takes an example whole."""
        return "\n".join(self.fields)


@dataclass(frozen=True)
class Task:
    """Items under one name."""

    name: str
    items: tuple[Item, ...]


def tasks(words: Sequence[str | Path], data: Path = Path()) -> list[Task]:
    """Read the items of files, one task a file, and of tasks that `dsjax evaluate` knows by name.

    words: files, and names with commas between them; data: the folder of the named tasks' files.
    Raises UserError for a file without items, or two of one name.
    """
    found: dict[str, Task] = {}
    for word in words:
        path = Path(word)
        is_file = path.exists() or path.suffix in (*_ENDINGS, ".gz", ".xz", ".zst")
        for task in [Task(stem(path), tuple(items(path)))] if is_file else _named(str(word), data):
            if task.name in found:
                raise UserError(f"{word} is named as another task is, {task.name}; rename one, or "
                                "leave it out")
            found[task.name] = task
    return list(found.values())


def _named(names: str, data: Path) -> list[Task]:
    """Tasks by their names, with items named as they are in the log of an evaluation."""
    from dsjax.evaluate import evaluation  # it brings the engine

    made = []
    for task in evaluation.named(names, "--against"):
        there = [row for row in rows.read(rows.find(data, task.name, task.test))
                 if task.is_asked(row)]
        own = [Item(task.question(row).id, _fields(row.where, row.fields), number)
               for number, row in enumerate(there)]
        made.append(Task(task.name, tuple(own)))
    return made


def stem(path: Path) -> str:
    """The name of a task's file without its endings."""
    name = path.name
    for ending in (".gz", ".xz", ".zst", *_ENDINGS):
        name = name.removesuffix(ending)
    return name


def items(path: Path) -> list[Item]:
    """Read the items of a file of JSON lines, packed or not."""
    if not path.exists():
        raise UserError(f"{path} is not there; name a file of JSON lines, or a task that `dsjax "
                        "evaluate` knows, as gsm8k")
    if not readers.is_lines(path):
        raise UserError(f"{path} is no file of JSON lines by its name; name one that ends in "
                        ".jsonl, .jsonl.gz, .jsonl.xz or .jsonl.zst")
    found = [_item(where, row, number)
             for number, (_, where, row) in enumerate(readers.rows(path))]
    if not found:
        raise UserError(f"{path} holds no items; fetch it again")
    return found


def _item(where: str, row: Any, number: int) -> Item:
    if not isinstance(row, dict):
        raise UserError(f"{where} is {type(row).__name__}, not an object with fields; mend the "
                        "line or take it out")
    fields = _fields(where, row)
    name = next((str(row[name])[:200] for name in NAMES if row.get(name) is not None), None)
    return Item(name or f"line {where.rpartition(' ')[2]}", fields, number)


def _fields(where: str, row: Mapping[str, Any]) -> tuple[str, ...]:
    """Texts of a row, those of the question first."""
    asked = [field for name in ASKED for field in _texts(row, name, where)]
    rest = [field for name in (*OFFERED, *ANSWERED) for field in _texts(row, name, where)]
    if not asked and not rest:
        has = ", ".join(sorted(map(str, row)))[:200] or "none"
        raise UserError(f"{where} has no text in any field that items have ({', '.join(ASKED)}), "
                        f"its fields are {has}; name the question so")
    return (*asked, *rest)


def _texts(row: Mapping[str, Any], name: str, where: str) -> Iterator[str]:
    """The text of a field, or of a list of them; numbers (the gold choice) are none."""
    value = row.get(name)
    if isinstance(value, dict) and isinstance(value.get("text"), list):
        value = value["text"]  # AI2's nested form of choices
    if isinstance(value, list) and all(isinstance(one, str) for one in value):
        value = "\n".join(value)
    if value is None or isinstance(value, int | float):
        return
    if not isinstance(value, str):
        raise UserError(f"{where} has {type(value).__name__} in field '{name}', which is no text; "
                        "mend the line or take it out")
    if not value.isascii() and any("\ud800" <= letter <= "\udfff" for letter in value):
        raise UserError(f"{where} has half of a surrogate pair in field '{name}', which is no "
                        "character; mend the line or take it out")
    if value.strip():
        yield value
