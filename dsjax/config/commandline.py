"""Dataclasses read from a command line: a field is a flag, a nested field has dots in its name.

`--train.steps 9`, `--train.steps=9`, and for a switch `--output.resume` or `--output.no-resume`; of
a flag given twice the last one counts. A field that is marked by `Word` stands without a flag, and
the fields of one that is marked INLINE have no prefix. A field that may hold one of several classes
keeps the one it has: `--model.moe None` takes it away, `--model.attention gqa` changes it and then
wants the fields that have no default, and a flag below an absent one brings it
(`--model.rope.yarn.factor 40`).

argparse cuts the line and lays out the help. It is imported in a hundredth of a second, and says
what is wrong as data, so that a refusal can name cause, values and remedy (dsjax.config.refusal).
"""

from __future__ import annotations

import argparse
import dataclasses
import enum
import functools
import inspect
import itertools
import shutil
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass
from typing import Any

from dsjax.config import refusal, typed
from dsjax.config.fields import class_choices, documented, field_types
from dsjax.config.run import RunConfig, SequenceStage
from dsjax.errors import UserError

SHORT = {"--precision": "--precision.matmul", "--profile": "--output.profile"}
"""Flags that are typed often, and what they stand for."""
HELP = ("-h", "--help")


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


def override(run: RunConfig, argv: Sequence[str], prog: str = "dsjax train CONFIG") -> RunConfig:
    """Replace the fields of a run that flags name; `--help` leaves with status 0."""
    return read(RunConfig, argv, prog, held=run)


def read(cls: type, argv: Sequence[str], prog: str, held: Any = None,
         lent: Mapping[str, Any] | None = None) -> Any:
    """Fill a dataclass from a command line; `--help` prints every flag and leaves with status 0.

    held: an instance whose fields stay where no flag names them. lent: values of fields, by name,
    that are known already; the parts of a nested one may still be changed.

    Raises:
        UserError: A flag is not known, lacks a value or has a wrong one, or one is missing.
    """
    words = [_dashed(token) for token in argv]
    said = {token.partition("=")[0]: token.partition("=")[2] or following
            for token, following in itertools.pairwise([*words, ""])}
    tree = _grow(cls, "--", held, said, lent or {})
    if any(flag in said for flag in HELP):
        print(_parser(tree, prog, is_help=True).format_help(), end="")
        raise SystemExit(0)
    leaves, branches = list(_leaves(tree)), list(_branches(tree))
    known = [flag for leaf in leaves for flag in leaf.flags]
    known += [branch.flag for branch in branches if len(branch.classes) > 1]
    words = [_in_full(word, known) for word in words]
    said = {_in_full(flag, known): value for flag, value in said.items()}
    for flag in said:
        if flag.startswith("-") and not typed.NUMBERS[float].fullmatch(flag):
            for branch in branches:
                if branch.cls is type(None) and flag.startswith(f"{branch.flag}."):
                    raise UserError(f"{flag} does not exist with {branch.flag} None; leave one of "
                                    "them out")
            refusal.unknown(flag, [*known, *HELP[1:]])
    said_of = _given(tree, leaves, words)
    given = {leaf.flag: typed.read(said_of[leaf.flag], leaf.hint, leaf.flag)
             for leaf in leaves if leaf.flag in said_of}
    lacking = [leaf.flag for leaf in leaves if leaf.default is MISSING and leaf.flag not in given]
    if lacking:
        raise UserError(f"give {refusal.listed(lacking)}; see --help")
    flags = {f"{branch.cls.__name__}.{name}": part.flag
             for branch in branches for name, part in branch.parts.items()}
    try:
        return _build(tree, given, lent or {})
    except ValueError as error:
        raise UserError(refusal.as_typed(str(error), flags)) from None


def _dashed(token: str) -> str:
    """Write the name of a flag with hyphens."""
    if not token.startswith("--"):
        return token
    name, equals, value = token.partition("=")
    return name.replace("_", "-") + equals + value


def _in_full(word: str, known: Sequence[str]) -> str:
    """Write a short flag in full, where it is no flag of its own."""
    name, equals, value = word.partition("=")
    return word if name in known else SHORT.get(name, name) + equals + value


def flags(before: Any, after: Any, flag: str = "--") -> list[str]:
    """Return the words that make one config of another of its class."""
    words: list[str] = []
    for f in dataclasses.fields(after):
        old, new, own = getattr(before, f.name), getattr(after, f.name), _below(flag, f.name)
        if old == new:
            continue
        if not dataclasses.is_dataclass(new):
            words += _words(own, new)
        elif type(old) is type(new):
            words += flags(old, new, own)
        else:
            classes = class_choices(field_types(type(after))[f.name])
            words += [own, _called(type(new))] if type(None) not in classes else []
            for part in dataclasses.fields(new):
                words += _words(_below(own, part.name), getattr(new, part.name))
    return words


def _below(flag: str, name: str) -> str:
    """The flag of a field of what a flag names."""
    return f"{flag}{'.' * (flag != '--')}{name.replace('_', '-')}"


def _words(flag: str, value: Any) -> list[str]:
    """A flag and its value as words of a line."""
    if isinstance(value, bool):
        return [flag if value else refusal.turned_off(flag)]
    if isinstance(value, tuple):
        return [flag, *map(_shown, value)]
    shown = _shown(value)
    return [f"{flag}={shown}"] if shown.startswith("-") else [flag, shown]


# The tree of a dataclass


def _grow(cls: type, flag: str, held: Any, said: Mapping[str, str],
          lent: Mapping[str, Any], classes: tuple[type, ...] = ()) -> Branch:
    """The tree of a class, of the classes that the line asks for."""
    parts: dict[str, Leaf | Branch] = {}
    marks = _marks(cls)
    for f in dataclasses.fields(cls):
        hint = field_types(cls)[f.name]
        own = _below(flag, f.name)
        value = lent.get(f.name, _default(f) if held is None else getattr(held, f.name))
        inner = class_choices(hint) or (hint,) * dataclasses.is_dataclass(hint)
        if not inner:
            if f.name not in lent:
                called = next((m.name for m in marks[f.name] if isinstance(m, Word)), None)
                parts[f.name] = Leaf(called or own, f.name, hint, value, called is not None,
                                     Mark.REPEATED in marks[f.name])
        elif Mark.INLINE in marks[f.name]:
            if value is not MISSING:
                parts[f.name] = _grow(hint, "--", value, said, {})
        elif (chosen := _chosen(own, inner, value, said)) is type(None):
            parts[f.name] = Branch(own, chosen, None, {}, inner)
        else:
            kept = value if type(value) is chosen else None
            parts[f.name] = _grow(chosen, own, kept, said, {}, inner)
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
    by_name = {_called(c): c for c in classes}
    somes = [c for c in classes if c is not type(None)]
    if len(classes) > 1 and flag in said:
        asked = said[flag].lower().removesuffix("config")
        if asked not in by_name:
            first = next(iter(field_types(somes[0]))).replace("_", "-")
            raise UserError(f"{flag} {said[flag][:40]} is not a choice; use "
                            f"{' or '.join(map(_called, [*somes, *set(classes) - set(somes)]))}, "
                            f"or a field of it, as {flag}.{first}")
        return by_name[asked]
    if value is not None and value is not MISSING:
        return type(value)
    is_brought = any(word.startswith(f"{flag}.") for word in said)
    return somes[0] if value is MISSING or (is_brought and len(somes) == 1) else type(None)


def _called(cls: type) -> str:
    """The name of a class on the command line: mla for MLAConfig."""
    return "none" if cls is type(None) else cls.__name__.lower().removesuffix("config")


def _branches(branch: Branch) -> Iterator[Branch]:
    yield branch
    for part in branch.parts.values():
        if isinstance(part, Branch):
            yield from _branches(part)


def _leaves(branch: Branch) -> Iterator[Leaf]:
    for one in _branches(branch):
        yield from (part for part in one.parts.values() if isinstance(part, Leaf))


def _build(branch: Branch, given: Mapping[str, Any], lent: Mapping[str, Any]) -> Any:
    """The instance that the flags make; a part that none of them changes is the same object."""
    if branch.cls is type(None):
        return None
    changed = {name: value for name, value in lent.items() if name not in branch.parts}
    for name, part in branch.parts.items():
        if isinstance(part, Branch):
            made = _build(part, given, {})
        elif part.flag in given:
            made = given[part.flag]
        else:
            continue
        if branch.held is None or made is not getattr(branch.held, name):
            changed[name] = made
    if branch.held is None:
        return branch.cls(**changed)
    return dataclasses.replace(branch.held, **changed) if changed else branch.held


# The line


def _given(tree: Branch, leaves: Sequence[Leaf], words: Sequence[str]) -> dict[str, list[str]]:
    """The words of each flag, and of each field without one, that the line has."""
    try:
        found, left = _parser(tree).parse_known_args(words)
    except argparse.ArgumentError as error:
        flag, _, off = (error.argument_name or "").partition("/")
        if off:
            raise UserError(f"{flag} is a switch and takes no value; write {flag}") from None
        raise UserError(f"{flag} needs a value; see --help") from None
    given = {flag: said if isinstance(said, list) else [said]
             for flag, said in vars(found).items()}
    for leaf in leaves:
        if leaf.is_word and left:
            count = len(left) if typed.is_many(leaf.hint) else 1
            given[leaf.flag], left = left[:count], left[count:]
    if left:
        raise UserError(f"these words belong to no flag: {', '.join(left)[:80]}; a switch takes no "
                        "value (--NAME or --no-NAME); see --help")
    return given


def _parser(tree: Branch, prog: str = "", is_help: bool = False) -> argparse.ArgumentParser:
    """The parser of a tree's flags; fields without one are in its help alone."""
    leaves = list(_leaves(tree))
    width = min(shutil.get_terminal_size().columns, 100)
    parser = argparse.ArgumentParser(
        usage=" ".join([prog, *(leaf.flag for leaf in leaves if leaf.is_word), "[--FLAG VALUE]"]),
        description=inspect.cleandoc(tree.cls.__doc__ or ""), add_help=False, allow_abbrev=False,
        exit_on_error=False, formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(
            prog, max_help_position=28, width=width))
    for branch in _branches(tree):
        said = documented(branch.cls) if is_help else {}
        title = "flags" if branch is tree else branch.flag if branch.flag != "--" else "the run"
        group = parser.add_argument_group(title)
        if len(branch.classes) > 1:
            group.add_argument(branch.flag, metavar="|".join(map(_called, branch.classes)),
                               default=argparse.SUPPRESS, help=f"now {_called(branch.cls)}")
        for leaf in branch.parts.values():
            if isinstance(leaf, Leaf) and not leaf.is_word:
                _add(group, leaf, said.get(leaf.name, ""))
            elif isinstance(leaf, Leaf) and is_help:
                group.add_argument(leaf.flag, help=said.get(leaf.name))
    return parser


def _add(group: argparse._ArgumentGroup, leaf: Leaf, said: str) -> None:
    """Add a flag, or the two of a switch, with its help and default."""
    if leaf.default not in (None, MISSING, (), False):
        said = f"{said} (default: {_shown(leaf.default)})".lstrip()
    more: dict[str, Any] = {"dest": leaf.flag, "default": argparse.SUPPRESS,
                            "help": said.replace("%", "%%")}
    if leaf.hint is bool:
        group.add_argument(*leaf.flags, action=_Switch, nargs=0, **more)
        return
    if leaf.is_repeated:
        more["action"] = "append"
    elif typed.is_many(leaf.hint):
        more["nargs"] = "*"
    group.add_argument(leaf.flag, metavar=typed.kind(leaf.hint).replace("None or ", ""), **more)


class _Switch(argparse.Action):
    """Two flags without a value: the first says True, the second False."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: Any = None) -> None:
        setattr(namespace, self.dest, str(option_string == self.option_strings[0]))


def _shown(value: Any) -> str:
    """A value as it can be typed."""
    if isinstance(value, tuple):
        return " ".join(map(_shown, value))
    if isinstance(value, SequenceStage):
        return f"{value.from_step}:{value.seq_len}"
    return str(value)
