"""How the values of fields are typed: numbers in ASCII digits, stages as FROM_STEP:SEQ_LEN.

A name or a path has at least one character: Python takes an empty path for the current folder.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from dsjax.config.run import SequenceStage

NUMBERS = {
    int: re.compile(r"[+-]?[0-9]+(_[0-9]+)*"),
    float: re.compile(r"[+-]?(([0-9][0-9_]*(\.[0-9]*)?|\.[0-9]+)(e[+-]?[0-9]+)?|inf|nan)", re.I),
}
DIGITS = 4000  # Python reads no longer whole numbers
EMPTY = "is empty"


class Text(str):
    """Words that may be none."""


def registry() -> Any:
    """What tyro is told of them."""
    from tyro.constructors import ConstructorRegistry

    made = ConstructorRegistry()
    made.primitive_rule(_number)
    made.primitive_rule(_stages)
    made.primitive_rule(_words)
    return made


def _words(info: Any) -> Any:
    """Names and paths, which are not empty, and texts, which may be."""
    from tyro.constructors import PrimitiveConstructorSpec

    kind = info.type
    if kind not in (str, Path, Text):
        return None

    def read(words: list[str]) -> Any:
        if not words[0] and kind is not Text:
            raise ValueError(EMPTY)
        return kind(words[0])

    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="PATH" if kind is Path else "STR",
        instance_from_str=read,
        is_instance=lambda x: isinstance(x, str if kind is Text else kind),
        str_from_instance=lambda x: [str(x)],
    )


def _number(info: Any) -> Any:
    """Whole numbers and others; Python's own would take digits of any script, and blanks."""
    from tyro.constructors import PrimitiveConstructorSpec

    kind = info.type
    if kind not in NUMBERS:
        return None

    def read(words: list[str]) -> Any:
        if len(words[0]) > DIGITS or not NUMBERS[kind].fullmatch(words[0]):
            raise ValueError(f"not a number: '{words[0][:40]}'")
        return kind(words[0])

    return PrimitiveConstructorSpec(
        nargs=1,
        metavar=kind.__name__.upper(),
        instance_from_str=read,
        is_instance=lambda x: isinstance(x, int | kind) and not isinstance(x, bool),
        str_from_instance=lambda x: [str(x)],
    )


def _stages(info: Any) -> Any:
    """Stages of the sequence-length curriculum."""
    from tyro.constructors import PrimitiveConstructorSpec

    def read(words: list[str]) -> tuple[SequenceStage, ...]:
        try:
            pairs = [(float(start), int(seq_len)) for start, _, seq_len in
                     (word.partition(":") for word in words)]
        except ValueError:
            raise ValueError("expected FROM_STEP:SEQ_LEN") from None
        return tuple(SequenceStage(start, seq_len) for start, seq_len in pairs)

    if info.type != tuple[SequenceStage, ...]:
        return None
    return PrimitiveConstructorSpec(
        nargs="*",
        metavar="FROM_STEP:SEQ_LEN",
        instance_from_str=read,
        is_instance=lambda x: isinstance(x, tuple),
        str_from_instance=lambda x: [f"{s.from_step}:{s.seq_len}" for s in x],
    )
