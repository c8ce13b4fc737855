"""Values as they are typed: numbers in ASCII digits, stages as FROM_STEP:SEQ_LEN, names not empty.

Python's own numbers would take digits of any script, and blanks; it takes an empty path for the
current folder. The word None stands for None wherever a field takes that.
"""

from __future__ import annotations

import re
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dsjax.config.run import SequenceStage
from dsjax.errors import UserError

NUMBERS = {
    int: re.compile(r"[+-]?[0-9]+(_[0-9]+)*"),
    float: re.compile(r"[+-]?(([0-9][0-9_]*(\.[0-9]*)?|\.[0-9]+)(e[+-]?[0-9]+)?|inf|nan)", re.I),
}
DIGITS = 4000  # Python reads no longer whole numbers
KINDS = {int: "INT", float: "FLOAT", Path: "PATH", SequenceStage: "FROM_STEP:SEQ_LEN"}


class Text(str):
    """Words that may be none."""


def is_many(hint: Any) -> bool:
    """Return True for a field that takes any number of words."""
    return typing.get_origin(hint) is tuple


def kind(hint: Any) -> str:
    """Return what a field takes, as the help and refusals call it: INT, None or INT, a|b."""
    inner = typing.get_args(hint)
    if typing.get_origin(hint) is typing.Literal:
        return "|".join(inner)
    if is_many(hint):
        return kind(inner[0])
    if type(None) in inner:
        return f"None or {kind(_some(hint))}"
    return KINDS.get(hint, "STR")


def read(words: Sequence[str], hint: Any, flag: str, is_needed: bool = False) -> Any:
    """Return the value of type `hint` that the words after a flag, or one without, say.

    is_needed: it has no default, so that leaving it out is no remedy.
    """
    leave = "leave it out or " if flag.startswith("-") and not is_needed else ""
    if is_many(hint):
        if "" in words and typing.get_args(hint)[0] is not Text:
            raise UserError(f"one of the names of {flag} is empty; leave it out or name one")
        return tuple(read([word], typing.get_args(hint)[0], flag) for word in words)
    (word,) = words
    if hint is bool:
        return word == "True"
    takes = f"{flag} takes {kind(hint)}, not {word[:40]!r}; see --help"
    if type(None) in typing.get_args(hint):
        if word == "None":
            return None
        hint = _some(hint)
    if typing.get_origin(hint) is typing.Literal:
        if word not in typing.get_args(hint):
            known = ", ".join(map(repr, typing.get_args(hint)))
            raise UserError(f"{flag} is {word[:40]!r}; choose from {known}")
        return word
    if not word and hint is not Text:
        raise UserError(f"{flag} is empty; {leave}name one")
    if hint is SequenceStage:
        return _stage(word, takes)
    if hint in NUMBERS and (len(word) > DIGITS or not NUMBERS[hint].fullmatch(word)):
        raise UserError(takes)
    return hint(word)


def _some(hint: Any) -> Any:
    """The type of an optional field beside None."""
    (some,) = (one for one in typing.get_args(hint) if one is not type(None))
    return some


def _stage(word: str, takes: str) -> SequenceStage:
    """A stage of the sequence-length curriculum."""
    start, _, seq_len = word.partition(":")
    try:
        return SequenceStage(float(start), int(seq_len))
    except ValueError:
        raise UserError(takes) from None
