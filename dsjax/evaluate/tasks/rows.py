"""Rows of a task's files: found by the names that they have in public, read and checked.

A file is lines of JSON, plain or packed (.gz, .xz, .zst), or parquet where pyarrow is installed.
Nothing is fetched: a file that is missing is named with where it comes from. A row knows its file
and line, and hands out a field of a kind or refuses it by both.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsjax.data import readers
from dsjax.disk import cause
from dsjax.errors import UserError

ENDINGS = (".jsonl", ".jsonl.gz", ".jsonl.xz", ".jsonl.zst", ".parquet")


@dataclass(frozen=True)
class Split:
    """A file of a task."""

    names: tuple[str, ...]
    """Paths below the folder of data that it may have, without their ending."""
    source: str
    """Place where the public file comes from."""


@dataclass(frozen=True)
class Row:
    """One example of a file."""

    where: str
    """File and line, as refusals name it."""
    fields: Mapping[str, Any]
    number: int = 0
    """Of the line, from 1."""

    def __contains__(self, name: str) -> bool:
        return self.fields.get(name) is not None

    def name(self, *fields: str) -> str:
        """The value of the first of some fields that is there, else the line's number."""
        return next((str(self.fields[name])[:200] for name in fields if name in self),
                    f"line {self.number}")

    def text(self, name: str) -> str:
        """A field that is a text, and not an empty one."""
        value = self._value(name, str, "a text")
        if not value.strip():
            raise UserError(f"{self.where} has an empty text in field '{name}'; fill it or take "
                            "the line out")
        return self._whole(name, value)

    def any_text(self, name: str) -> str:
        """A field that is a text, which may be empty."""
        return self._whole(name, self._value(name, str, "a text"))

    def texts(self, name: str, least: int = 1) -> tuple[str, ...]:
        """A field that is a list of texts, none of which is empty."""
        value = self._value(name, list, "a list of texts")
        if len(value) < least or not all(isinstance(one, str) for one in value):
            raise self._wrong(name, value, f"a list of at least {least} texts")
        if not all(one.strip() for one in value):
            raise UserError(f"{self.where} has an empty text in the list '{name}'; fill it or take "
                            "the line out")
        return tuple(self._whole(name, one) for one in value)

    def whole(self, name: str, below: int | None = None) -> int:
        """A field that is a whole number from 0 on, also one written as a text."""
        value = self.fields.get(name)
        if isinstance(value, str) and value.isascii() and value.isdigit():
            value = int(value[:18])
        most = "" if below is None else f" below {below}"
        if isinstance(value, bool) or not isinstance(value, int) or value < 0 or (
                below is not None and value >= below):
            raise self._wrong(name, self._value(name, object, ""), f"a whole number{most}")
        return value

    def part(self, name: str) -> Row:
        """A field that is an object, as a row of its own."""
        return Row(f"{self.where}, in field '{name}',", self._value(name, dict, "an object"))

    def _value(self, name: str, kind: Any, what: str) -> Any:
        if name not in self.fields:
            has = ", ".join(sorted(map(str, self.fields)))[:200] or "none"
            raise UserError(f"{self.where} has no field '{name}', its fields are {has}; give the "
                            "public file, or name the field so")
        value = self.fields[name]
        if not isinstance(value, kind):
            raise self._wrong(name, value, what)
        return value

    def _wrong(self, name: str, value: Any, what: str) -> UserError:
        return UserError(f"{self.where} has {value!r:.60} in field '{name}', which is not {what}; "
                         "mend the line or take it out")

    def _whole(self, name: str, value: str) -> str:
        if not value.isascii() and any("\ud800" <= letter <= "\udfff" for letter in value):
            raise UserError(f"{self.where} has half of a surrogate pair in field '{name}', which "
                            "is no character; mend the line or take it out")
        return value


def find(data: Path, task: str, split: Split) -> Path:
    """The file of a split in the folder of data; refuses with the names that it may have."""
    for name in split.names:
        there = [path for ending in ENDINGS if (path := data / f"{name}{ending}").is_file()]
        if len(there) > 1:
            raise UserError(f"{data} has {' and '.join(path.name for path in there)}, and one of "
                            f"them is to be the file of {task}; leave one there")
        if there:
            return there[0]
    if not data.is_dir():
        raise UserError(f"--data {data} is not a folder; name the one with the tasks' files: "
                        f"{task} has {_names(split)}, which comes from {split.source}, and is "
                        "never fetched")
    raise UserError(f"{data} lacks a file of {task}: {_names(split)}; it comes from "
                    f"{split.source}, and is never fetched")


def _names(split: Split) -> str:
    names = " or ".join(f"{name}.jsonl" for name in split.names)
    return f"{names} (or {', '.join(ENDINGS[1:])})"


def read(path: Path) -> list[Row]:
    """All rows of a file, which has at least one."""
    parse = _parquet if path.suffix == ".parquet" else _lines
    rows = list(parse(path))
    if not rows:
        raise UserError(f"{path} holds no rows; fetch it again")
    return rows


def _lines(path: Path) -> Iterator[Row]:
    for number, where, value in readers.rows(path):
        if not isinstance(value, dict):
            raise UserError(f"{where} is {type(value).__name__}, not an object with fields; mend "
                            "the line or take it out")
        yield Row(where, value, number)


def _parquet(path: Path) -> Iterator[Row]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise UserError(f"{path} is parquet, which needs pyarrow, and that is not installed; "
                        "install it, or write the file as JSONL") from None
    try:
        table = parquet.read_table(path)
    except (OSError, pyarrow.ArrowException) as error:
        raise UserError(f"{path} cannot be read as parquet ({cause(error)}); fetch it again"
                        ) from None
    for number, value in enumerate(table.to_pylist(), 1):
        yield Row(f"{path} row {number}", value, number)
