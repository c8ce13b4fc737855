"""The flags of a dataclass as a tree: a field is a leaf, a nested class a branch.

A field that may hold one of several classes has the branch of the one that a line asks for, or of
the one it held; `build` makes an instance of what the flags gave, and keeps the rest.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import typing
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass
from typing import Any

from dsjax.config.fields import class_choices, field_types
from dsjax.config.flags import refusal
from dsjax.errors import UserError


@dataclass(frozen=True)
class Word:
    """Mark of a field that is a word of the line, without a flag; the help calls it `name`."""

    name: str


class Mark(enum.Enum):
    """Other marks of a field, as in Annotated[tuple[str, ...], Mark.REPEATED]."""

    REPEATED = enum.auto()
    """It holds the values of a flag that may be given any number of times."""
    INLINE = enum.auto()
    """Its own fields are flags without a prefix."""


@dataclass(frozen=True)
class Leaf:
    """A field that one flag, or a word without one, fills."""

    flag: str
    name: str
    hint: Any
    default: Any  # MISSING where it must be given
    is_word: bool
    is_repeated: bool

    @property
    def flags(self) -> list[str]:
        """Its flag; of a switch also the one that turns it off; of a word none."""
        if self.is_word:
            return []
        return [self.flag, refusal.turned_off(self.flag)] if self.hint is bool else [self.flag]


@dataclass(frozen=True)
class Branch:
    """A class below a flag: what it held so far, and its parts by field."""

    flag: str
    cls: type  # NoneType: there is nothing, and no part
    held: Any  # None: the parts have the defaults of the class
    parts: dict[str, Leaf | Branch]
    classes: tuple[type, ...]  # `--flag NAME` chooses from them, where they are several


def grow(cls: type, flag: str, held: Any, said: Mapping[str, str],
          lent: Mapping[str, Any], classes: tuple[type, ...] = ()) -> Branch:
    """The tree of a class, of the classes that the line asks for."""
    parts: dict[str, Leaf | Branch] = {}
    marks = _marks(cls)
    for f in dataclasses.fields(cls):
        hint = field_types(cls)[f.name]
        own = below(flag, f.name)
        value = lent.get(f.name, _default(f) if held is None else getattr(held, f.name))
        inner = class_choices(hint) or (hint,) * dataclasses.is_dataclass(hint)
        if not inner:
            if f.name not in lent:
                called = next((m.name for m in marks[f.name] if isinstance(m, Word)), None)
                parts[f.name] = Leaf(called or own, f.name, hint, value, called is not None,
                                     Mark.REPEATED in marks[f.name])
        elif Mark.INLINE in marks[f.name]:
            if value is not MISSING:
                parts[f.name] = grow(hint, "--", value, said, {})
        elif (chosen := _chosen(own, inner, value, said)) is type(None):
            parts[f.name] = Branch(own, chosen, None, {}, inner)
        else:
            kept = value if type(value) is chosen else None
            parts[f.name] = grow(chosen, own, kept, said, {}, inner)
    return Branch(flag, cls, held, parts, classes)


@functools.cache
def _marks(cls: type) -> dict[str, tuple[Any, ...]]:
    """The marks that are written beside the type of each field."""
    hints = typing.get_type_hints(cls, include_extras=True)
    return {name: getattr(hint, "__metadata__", ()) for name, hint in hints.items()}


def _default(f: dataclasses.Field[Any]) -> Any:
    return f.default if f.default_factory is MISSING else f.default_factory()


def _chosen(flag: str, classes: tuple[type, ...], value: Any, said: Mapping[str, str]) -> type:
    """The class that a field holds, NoneType for none: the one that is asked for, or the same."""
    by_name = {called(c): c for c in classes}
    somes = [c for c in classes if c is not type(None)]
    if len(classes) > 1 and flag in said:
        asked = said[flag].lower().removesuffix("config")
        if asked not in by_name:
            first = next(iter(field_types(somes[0]))).replace("_", "-")
            raise UserError(f"{flag} {said[flag][:40]} is not a choice; use "
                            f"{' or '.join(map(called, [*somes, *set(classes) - set(somes)]))}, "
                            f"or a field of it, as {flag}.{first}")
        return by_name[asked]
    if value is not None and value is not MISSING:
        return type(value)
    is_brought = any(word.startswith(f"{flag}.") for word in said)
    return somes[0] if value is MISSING or (is_brought and len(somes) == 1) else type(None)


def called(cls: type) -> str:
    """The name of a class on the command line: mla for MLAConfig."""
    return "none" if cls is type(None) else cls.__name__.lower().removesuffix("config")


def branches(branch: Branch) -> Iterator[Branch]:
    """Yield a branch and all below it."""
    yield branch
    for part in branch.parts.values():
        if isinstance(part, Branch):
            yield from branches(part)


def leaves(branch: Branch) -> Iterator[Leaf]:
    """Yield the leaves of a branch and of all below it."""
    for one in branches(branch):
        yield from (part for part in one.parts.values() if isinstance(part, Leaf))


def build(branch: Branch, given: Mapping[str, Any], lent: Mapping[str, Any]) -> Any:
    """The instance that the flags make; a part that none of them changes is the same object."""
    if branch.cls is type(None):
        return None
    changed = {name: value for name, value in lent.items() if name not in branch.parts}
    for name, part in branch.parts.items():
        if isinstance(part, Branch):
            made = build(part, given, {})
        elif part.flag in given:
            made = given[part.flag]
        else:
            continue
        if branch.held is None or made is not getattr(branch.held, name):
            changed[name] = made
    if branch.held is None:
        return branch.cls(**changed)
    return dataclasses.replace(branch.held, **changed) if changed else branch.held


def below(flag: str, name: str) -> str:
    """The flag of a field of what a flag names."""
    return f"{flag}{'.' * (flag != '--')}{name.replace('_', '-')}"
