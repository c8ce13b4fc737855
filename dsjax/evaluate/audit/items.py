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

    @property
    def text(self) -> str:
        """All of it, as GPT-3 takes an example whole."""
        return "\n".join(self.fields)


@dataclass(frozen=True)
class Task:
    """Items under one name."""

    name: str
    items: tuple[Item, ...]


def tasks(paths: Sequence[Path]) -> list[Task]:
    """Read the items of files, one task a file.

    Raises UserError for a file without items, or two of one name.
    """
    found: dict[str, Task] = {}
    for path in paths:
        name = stem(path)
        if name in found:
            raise UserError(f"{path} is named as another file of tasks is, {name}; rename one")
        found[name] = Task(name, tuple(items(path)))
    return list(found.values())


def stem(path: Path) -> str:
    """The name of a task's file without its endings."""
    name = path.name
    for ending in (".gz", ".xz", ".zst", *_ENDINGS):
        name = name.removesuffix(ending)
    return name


def items(path: Path) -> list[Item]:
    """Read the items of a file of JSON lines, packed or not."""
    if not readers.is_lines(path):
        raise UserError(f"{path} is no file of JSON lines by its name; name one that ends in "
                        ".jsonl, .jsonl.gz, .jsonl.xz or .jsonl.zst")
    found = [_item(where, row) for where, row in readers.rows(path)]
    if not found:
        raise UserError(f"{path} holds no items; fetch it again")
    return found


def _item(where: str, row: Any) -> Item:
    if not isinstance(row, dict):
        raise UserError(f"{where} is {type(row).__name__}, not an object with fields; mend the "
                        "line or take it out")
    asked = [field for name in ASKED for field in _texts(row, name, where)]
    rest = [field for name in (*OFFERED, *ANSWERED) for field in _texts(row, name, where)]
    if not asked and not rest:
        has = ", ".join(sorted(map(str, row)))[:200] or "none"
        raise UserError(f"{where} has no text in any field that items have ({', '.join(ASKED)}), "
                        f"its fields are {has}; name the question so")
    name = next((str(row[name])[:200] for name in NAMES if row.get(name) is not None), None)
    return Item(name or f"line {where.rpartition(' ')[2]}", (*asked, *rest))


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
