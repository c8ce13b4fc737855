"""Dataclasses read from a command line: a field is a flag, a nested field has dots in its name.

`--train.steps 9`, `--train.steps=9`, and for a switch `--output.resume` or `--output.no-resume`; of
a flag given twice the last one counts. A field that is marked by `Word` stands without a flag, and
the fields of one that is marked INLINE have no prefix. A field that may hold one of several classes
keeps the one it has: `--model.moe None` takes it away, `--model.attention gqa` changes it and then
wants the fields that have no default, and a flag below an absent one brings it
(`--model.rope.yarn.factor 40`).

argparse cuts the line and lays out the help. It is imported in a hundredth of a second, and says
what is wrong as data, so that `refusal` can name cause, values and remedy.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import itertools
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import MISSING
from typing import Any

from dsjax.config.fields import class_choices, documented, field_types
from dsjax.config.flags import flag_tree, refusal, typed
from dsjax.config.flags.flag_tree import Branch, Leaf
from dsjax.config.run import RunConfig, SequenceStage
from dsjax.errors import UserError

SHORT = {"--precision": "--precision.matmul", "--profile": "--output.profile",
         "--data": "--data.train"}
"""Flags that are typed often, and what they stand for."""
HELP = ("-h", "--help")


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
    tree = flag_tree.grow(cls, "--", held, said, lent or {})
    if any(flag in said for flag in HELP):
        print(_parser(tree, prog, is_help=True).format_help(), end="")
        raise SystemExit(0)
    leaves, branches = list(flag_tree.leaves(tree)), list(flag_tree.branches(tree))
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
    given = {leaf.flag: typed.read(said_of[leaf.flag], leaf.hint, leaf.flag,
                                   leaf.default is MISSING)
             for leaf in leaves if leaf.flag in said_of}
    lacking = [leaf.flag for leaf in leaves if leaf.default is MISSING and leaf.flag not in given]
    if lacking:
        raise UserError(f"give {refusal.listed(lacking)}; see --help")
    flags = {f"{branch.cls.__name__}.{name}": part.flag
             for branch in branches for name, part in branch.parts.items()}
    try:
        return flag_tree.build(tree, given, lent or {})
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
        old, new = getattr(before, f.name), getattr(after, f.name)
        own = flag_tree.below(flag, f.name)
        if old == new:
            continue
        if not dataclasses.is_dataclass(new):
            words += _words(own, new)
        elif type(old) is type(new):
            words += flags(old, new, own)
        else:
            classes = class_choices(field_types(type(after))[f.name])
            words += [own, flag_tree.called(type(new))] if type(None) not in classes else []
            for part in dataclasses.fields(new):
                words += _words(flag_tree.below(own, part.name), getattr(new, part.name))
    return words


def _words(flag: str, value: Any) -> list[str]:
    """A flag and its value as words of a line."""
    if isinstance(value, bool):
        return [flag if value else refusal.turned_off(flag)]
    if isinstance(value, tuple):
        return [flag, *map(_shown, value)]
    shown = _shown(value)
    return [f"{flag}={shown}"] if shown.startswith("-") else [flag, shown]


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
    leaves = list(flag_tree.leaves(tree))
    width = min(shutil.get_terminal_size().columns, 100)
    parser = argparse.ArgumentParser(
        usage=" ".join([prog, *(leaf.flag for leaf in leaves if leaf.is_word),
                        *(f"{leaf.flag} {_metavar(leaf)}" for leaf in leaves
                          if leaf.default is MISSING and not leaf.is_word), "[--FLAG VALUE]"]),
        description=inspect.cleandoc(tree.cls.__doc__ or ""), add_help=False, allow_abbrev=False,
        exit_on_error=False, formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(
            prog, max_help_position=28, width=width))
    for branch in flag_tree.branches(tree):
        said = documented(branch.cls) if is_help else {}
        about = (branch.cls.__doc__ or "").partition(".")[0]
        inline = "the run" if branch.cls is RunConfig else about[:1].lower() + about[1:]
        title = "flags" if branch is tree else branch.flag if branch.flag != "--" else inline
        group = parser.add_argument_group(title)
        if len(branch.classes) > 1:
            names = map(flag_tree.called, branch.classes)
            group.add_argument(branch.flag, metavar="|".join(names), default=argparse.SUPPRESS,
                               help=f"now {flag_tree.called(branch.cls)}")
        for leaf in branch.parts.values():
            if isinstance(leaf, Leaf) and not leaf.is_word:
                _add(group, leaf, said.get(leaf.name, ""))
            elif isinstance(leaf, Leaf) and is_help:
                group.add_argument(leaf.flag, help=said.get(leaf.name))
    return parser


def _add(group: argparse._ArgumentGroup, leaf: Leaf, said: str) -> None:
    """Add a flag, or the two of a switch, with its help and default."""
    if leaf.default is MISSING:
        said = f"{said} (required)".lstrip()
    elif leaf.default not in (None, (), False):
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
    group.add_argument(leaf.flag, metavar=_metavar(leaf), **more)


def _metavar(leaf: Leaf) -> str:
    """A flag's value, as help calls it."""
    return typed.kind(leaf.hint).replace("None or ", "")


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
