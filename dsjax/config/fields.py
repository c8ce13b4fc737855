"""Checks of the fields of config classes, and the nearest known word to a misspelled one."""

from __future__ import annotations

import ast
import dataclasses
import difflib
import functools
import inspect
import itertools
import math
import re
import textwrap
import types
import typing
from collections.abc import Hashable, Iterable
from typing import Any

from dsjax.errors import UserError

WORDS = {int: "a whole number", float: "a number", str: "a text", bool: "True or False"}


def field_types(cls: type) -> dict[str, Any]:
    """Types of a config class's fields, in order."""
    return _field_types(cls)


@functools.cache
def _field_types(cls: Hashable) -> dict[str, Any]:
    assert isinstance(cls, type), "classes are hashable"
    found = typing.get_type_hints(cls)
    return {f.name: found[f.name] for f in dataclasses.fields(cls)}


@functools.cache
def documented(cls: type) -> dict[str, str]:
    """Return the docstring of each field of a class, its own and those of its base classes."""
    found: dict[str, str] = {}
    for one in reversed([c for c in cls.__mro__ if dataclasses.is_dataclass(c)]):
        (made,) = ast.parse(textwrap.dedent(inspect.getsource(one))).body
        assert isinstance(made, ast.ClassDef), "the source of a class"
        found |= _documented_by(made)
    return found


def _documented_by(made: ast.ClassDef) -> dict[str, str]:
    return {
        field.target.id: " ".join(text.value.value.split())
        for field, text in itertools.pairwise(made.body)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
        and isinstance(text.value.value, str)}


MOST = 2**31 - 1
"""Of anything that is counted: ids and steps are int32."""
SMALLEST, LARGEST = 2.0**-126, 2.0**128 - 2.0**104
"""Of the numbers that float32 holds in full precision, but 0."""


def finite(part: Any) -> None:
    """Refuse, in a config's own fields, numbers that compare with nothing or are 0 or endless in
    float32, in which everything is computed."""
    for f in dataclasses.fields(part):
        value = getattr(part, f.name)
        if not isinstance(value, float):
            continue
        named = f"{type(part).__name__}.{f.name}={value}"
        if not math.isfinite(value):
            raise ValueError(f"{named} is not a finite number; give one")
        if value and not SMALLEST <= abs(value) <= LARGEST:
            raise ValueError(f"{named} is not a number that float32 holds; use 0 or one between "
                             "1e-37 and 1e38")


def counted(owner: str, least: int = 1, **values: float) -> None:
    """Refuse sizes and counts below the least, or more than any machine has."""
    for name, value in values.items():
        if value < least:
            raise ValueError(f"{owner}.{name}={shown(value)} must be at least {least}; choose a "
                             "positive size")
        if value > MOST:
            raise ValueError(f"{owner}.{name}={shown(value)} is more than any machine has; use at "
                             f"most {MOST}")


def between(part: Any, name: str, least: float, most: float, reports: str) -> None:
    """Refuse a number outside the range in which the model learns; `reports` have such ones."""
    value = getattr(part, name)
    if least > 0 and value <= 0:
        raise ValueError(f"{type(part).__name__}.{name}={shown(value)} must be above 0; {reports}")
    if not least <= value <= most:
        raise ValueError(f"{type(part).__name__}.{name}={shown(value)} is not between {least:g} "
                         f"and {most:g}; {reports}")


def shown(value: float) -> str:
    """A number, cut where it would fill a page."""
    if isinstance(value, int) and abs(value) >= 10**30:
        return f"{'-' * (value < 0)}2^{value.bit_length() - 1} and more"
    return str(value)


def divisors(n: int) -> list[int]:
    """All divisors of n, in order."""
    small = [k for k in range(1, math.isqrt(n) + 1) if n % k == 0]
    return sorted({*small, *(n // k for k in small)})


def choices(n: int, near: int, most: int = 16) -> list[int]:
    """Divisors of n to choose from: those nearest to what was asked for where they are many."""
    return sorted(sorted(divisors(n), key=lambda k: abs(k - near))[:most])


def well_typed(part: Any) -> None:
    """Refuse, in a config's own fields, values that are not of the declared type, by name.

    Config files are Python and may put anything there. What is taken is what JSON gives back equal,
    so that a run whose folder was written can be resumed: no NumPy scalars, no infinities, no whole
    numbers above 63 bits, no control characters in names and paths.
    """
    for name, hint in field_types(type(part)).items():
        why = _why_not(getattr(part, name), hint)
        if why is not None:
            raise ValueError(f"{type(part).__name__}.{name}={_short(getattr(part, name))} {why}")
    finite(part)


def _why_not(value: Any, hint: Any) -> str | None:
    """The reason why a value is not of a type, in words that follow it; None if it is."""
    if type(None) in typing.get_args(hint):
        if value is None:
            return None
        others = [kind for kind in typing.get_args(hint) if kind is not type(None)]
        if len(others) == 1:
            return _why_not(value, others[0])
    if typing.get_origin(hint) is typing.Literal:
        choices = typing.get_args(hint)
        is_one = type(value) is str and value in choices
        return None if is_one else f"is not a choice; use {' or '.join(choices)}"
    if typing.get_origin(hint) is tuple:
        inner = typing.get_args(hint)
        if type(value) is not tuple or (inner[1:] != (...,) and len(inner) != len(value)):
            return "is not a tuple; write (a, b) or (a,)"
        kinds = inner[:1] * len(value) if inner[1:] == (...,) else inner
        return next(filter(None, map(_why_not, value, kinds)), None)
    kinds = tuple(kind for kind in typing.get_args(hint) or (hint,) if kind is not type(None))
    if type(value) not in kinds and not (type(value) is int and float in kinds):
        wanted = " or ".join(WORDS.get(kind, f"a {kind.__name__}") for kind in kinds)
        return f"is of type {type(value).__name__}; give {wanted}"
    if isinstance(value, str):
        if not value:
            return "is empty; leave it out"
        odd = next((c for c in value if ord(c) < 32 or 127 <= ord(c) < 160), None)
        return None if odd is None else f"has the control character {odd!r}; leave it out"
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        return "has more than 63 bits; give a smaller number"
    if isinstance(value, float) and not math.isfinite(value):
        return "is not a finite number; give one"
    return None


def _short(value: Any) -> str:
    """A value in a sentence; an int of thousands of digits has no decimal form in Python."""
    text = hex(value) if isinstance(value, int) and value.bit_length() > 999 else repr(value)
    return text if len(text) <= 60 else f"{text[:40]}..."


def seed_in_range(seed: int, name: str) -> None:
    """Refuse a seed that some random generator does not take; `name` is what precedes it."""
    if not 0 <= seed < 2**63:
        raise UserError(f"{name}{_short(seed)} is not a seed; use a whole number from 0 to "
                        f"{2**63 - 1}")


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


def profiled(steps: str) -> tuple[int, int] | int:
    """The first and the last step that `--profile` names, or their number."""
    if found := re.fullmatch(r"([0-9]{1,18})(?::([0-9]{1,18}))?", str(steps)):
        first, last = int(found[1]), found[2] and int(found[2])
        if not last and not found[2] and first > 0:
            return first
        if last and 1 <= first <= last:
            return first, last
    raise ValueError(f"--profile (--output.profile) {str(steps)[:40]!r} names no steps; use a "
                     "number of them, as 3, or the first and the last, as 10:13")
