"""What the fields of a config class may hold, and the nearest known word to a misspelled one."""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Iterable
from typing import Any


def field_types(cls: type) -> dict[str, Any]:
    """Types of a config class's fields, in order."""
    found = typing.get_type_hints(cls)
    return {f.name: found[f.name] for f in dataclasses.fields(cls)}


def finite(part: Any) -> None:
    """Refuse, in a config's own fields, numbers that compare with nothing or have no end."""
    for f in dataclasses.fields(part):
        value = getattr(part, f.name)
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(
                f"{type(part).__name__}.{f.name}={value} is not a finite number; give one"
            )


def class_choices(hint: Any) -> tuple[type, ...]:
    """Members of a union that holds config classes, with NoneType if it does; else nothing."""
    if not isinstance(hint, types.UnionType) and typing.get_origin(hint) is not typing.Union:
        return ()
    members = typing.get_args(hint)
    return members if any(dataclasses.is_dataclass(m) for m in members) else ()


def did_you_mean(word: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """The words `, did you mean ...?` when something known is close."""
    close = difflib.get_close_matches(word, list(known), n=3, cutoff=cutoff)
    return f", did you mean {' or '.join(close)}" if close else ""
