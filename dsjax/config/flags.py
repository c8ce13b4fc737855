"""Flags that a command reads by itself, `--flag VALUE` or `--flag=VALUE` like all others.

Each function takes its flag out of the words and returns what was said with what is left. Given
twice, the last one counts, as everywhere.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from dsjax.config.fields import did_you_mean
from dsjax.errors import UserError

LARGEST = 2**63 - 1


def take(argv: Sequence[str], flag: str) -> tuple[str | None, list[str]]:
    """The value of a flag, None where it is not given, and what is left."""
    value, left, words = None, [], iter(argv)
    for word in words:
        if word != flag and not word.startswith(f"{flag}="):
            left.append(word)
            continue
        value = next(words, "--") if word == flag else word.partition("=")[2]
        if not value:
            raise UserError(f"{flag} needs a value, it is empty; leave it out or name one")
        if word == flag and value.startswith("--"):
            raise UserError(f"{flag} needs a value; see --help")
    return value, left


def take_switch(argv: Sequence[str], flag: str) -> tuple[bool, list[str]]:
    """Whether a flag without a value is given, and what is left."""
    for word in argv:
        if word.startswith(f"{flag}="):
            raise UserError(f"{word} is a switch with a value; write {flag}")
    return flag in argv, [word for word in argv if word != flag]


def take_number(argv: Sequence[str], flag: str, default: int, least: int = 1,
                most: int = LARGEST) -> tuple[int, list[str]]:
    """The whole number of a flag, and what is left."""
    value, left = take(argv, flag)
    return (default if value is None else whole(value, flag, least, most)), left


def whole(text: str, flag: str, least: int = 1, most: int = LARGEST) -> int:
    """A whole number as typed: digits, and between them underscores."""
    if re.fullmatch(r"[+-]?[0-9]+(_[0-9]+)*", text) and len(text) <= 40:
        number = int(text)
        if least <= number <= most:
            return number
    up = f"up to {most:,}" if most < LARGEST else "on"
    raise UserError(f"{flag} {text[:40] or repr('')} is not a whole number from {least} {up}; give "
                    "one")


def take_numbers(argv: Sequence[str], defaults: Mapping[str, int]) -> tuple[dict[str, int],
                                                                           list[str]]:
    """Numbers of flags `--NAME N`, those of `defaults` where not given, and what is left."""
    numbers, left = {}, list(argv)
    for name, default in defaults.items():
        numbers[name], left = take_number(left, f"--{name}", default)
    return numbers, left


def refuse(left: Sequence[str], usage: str) -> None:
    """Refuse words that belong to no flag; `usage` lists the flags."""
    if left:
        mean = did_you_mean(left[0].partition("=")[0], re.findall(r"--[a-z-]+", usage))
        raise UserError(f"{' '.join(left[:2])[:80]} is not understood{mean}; use {usage}")
