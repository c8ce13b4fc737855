"""Values between a program and its check, as JSON: data go over whole, other objects by number.

Data are what Python's literals write, Python's own types (`int`) and values of a few types of the
standard library. A value of a subclass arrives as its base, so that a program cannot send an object
that equals everything. Any other object stays where it is, and a number stands for it.

    [1, "a"] <-> [1, "a"]        (1, 2.5) <-> {"tuple": [1, {"float": "0x1.4p+1"}]}
"""

from __future__ import annotations

import array
import builtins
import datetime
import json
import os
import struct
from collections import deque
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any

MOST_BYTES = 1 << 26
"""Of one message."""
EXACT = 1 << 53
SEQUENCES: dict[str, Callable[[list[Any]], Any]] = {
    "tuple": tuple, "set": set, "frozenset": frozenset, "deque": deque}
TEXTS: dict[str, tuple[type, Callable[[Any], str], Callable[[str], Any]]] = {
    "int": (int, hex, lambda text: int(text, 16)),
    "float": (float, float.hex, float.fromhex),
    "complex": (complex, lambda x: f"{x.real.hex()} {x.imag.hex()}",
                lambda text: complex(*map(float.fromhex, text.split()))),
    "bytes": (bytes, bytes.hex, bytes.fromhex),
    "bytearray": (bytearray, bytearray.hex, bytearray.fromhex),
    "range": (range, lambda x: f"{x.start} {x.stop} {x.step}",
              lambda text: range(*map(int, text.split()))),
    "Decimal": (Decimal, str, Decimal),
    "Fraction": (Fraction, str, Fraction),
    "datetime": (datetime.datetime, datetime.datetime.isoformat, datetime.datetime.fromisoformat),
    "date": (datetime.date, datetime.date.isoformat, datetime.date.fromisoformat),
    "time": (datetime.time, datetime.time.isoformat, datetime.time.fromisoformat),
}
TYPES = {kind.__name__: kind for kind in vars(builtins).values() if isinstance(kind, type)}
BASES: tuple[Any, ...] = (
    int, float, complex, str, bytes, bytearray, list, tuple, dict, set, frozenset, deque)


class ClosedError(EOFError):
    """The other end is gone."""


def encode(value: Any, keep: Callable[[Any], int]) -> Any:
    """Return a value as JSON has it; `keep` gives the number of an object that is no data."""
    kind = type(value)
    if value is None or kind in (bool, str):
        return value
    if kind is int and -EXACT < value < EXACT:
        return value
    for name, (of, write, _) in TEXTS.items():
        if kind is of:
            return {name: write(value)}
    if kind is list:
        return [encode(item, keep) for item in value]
    if kind.__name__ in SEQUENCES and kind is SEQUENCES[kind.__name__]:
        return {kind.__name__: [encode(item, keep) for item in value]}
    if kind is dict:
        return {"dict": [[encode(k, keep), encode(v, keep)] for k, v in value.items()]}
    if kind is type and value in TYPES.values():
        return {"type": value.__name__}
    if kind is array.array:
        return {"array": [value.typecode, value.tobytes().hex()]}
    for base in BASES:
        if isinstance(value, base):
            return encode(base(value), keep)
    return {"object": keep(value)}


def decode(told: Any, known: Callable[[int], Any]) -> Any:
    """Return the value; `known` gives the object of a number."""
    if isinstance(told, list):
        return [decode(item, known) for item in told]
    if not isinstance(told, dict):
        return told
    ((name, inner),) = told.items()
    if name in TEXTS:
        return TEXTS[name][2](inner)
    if name in SEQUENCES:
        return SEQUENCES[name]([decode(item, known) for item in inner])
    if name == "dict":
        return {decode(k, known): decode(v, known) for k, v in inner}
    if name == "array":
        return array.array(inner[0], bytes.fromhex(inner[1]))
    if name == "type":
        return TYPES[inner]
    return known(int(told["object"]))


def send(where: int, message: Any) -> None:
    """Write a message, its length before it."""
    body = json.dumps(message).encode()
    todo = memoryview(struct.pack("<I", len(body)) + body)
    while todo:
        todo = todo[os.write(where, todo) :]


def receive(where: int) -> Any:
    """Read a message.

    Raises:
        ClosedError: there is none any more, or none that is one.
    """
    (size,) = struct.unpack("<I", _read(where, 4))
    if size > MOST_BYTES:
        raise ClosedError(f"a message of {size:,} bytes, and {MOST_BYTES:,} are taken")
    return json.loads(_read(where, size))


def _read(where: int, size: int) -> bytes:
    parts = []
    while size:
        part = os.read(where, min(size, 1 << 16))
        if not part:
            raise ClosedError("the other end is gone")
        parts.append(part)
        size -= len(part)
    return b"".join(parts)
