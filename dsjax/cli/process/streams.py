"""The process's three streams: open, and ready to be given any text.

A process may be started with a stream closed. Python then has None in its place, and the next file
that is opened gets its number: what a library writes to standard error would go into a checkpoint.
A stream may also be of an encoding that lacks most letters (ASCII in a bare container, cp1252).
"""

from __future__ import annotations

import io
import os
import sys
from typing import Any

OUTPUT = "standard output"


class Output(io.FileIO):
    """Standard output, which is named in what the system says when it cannot be written."""

    def write(self, data: Any) -> int:
        """Write bytes."""
        try:
            return super().write(data)
        except OSError as error:
            error.filename = OUTPUT
            raise


def prepare() -> None:
    """Open what is closed to nowhere, and write letters that an encoding lacks as marks."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free, which is this one
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "r" if number == 0 else "w", closefd=False))  # noqa: SIM115
    if isinstance(sys.stderr, io.TextIOWrapper):
        sys.stderr.reconfigure(errors="backslashreplace")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout = _output(sys.stdout.fileno(), sys.stdout)


def divert_libraries() -> None:
    """Send to standard error what libraries write to standard output, which is a command's own.

    Gloo, by which processes exchange arrays on CPUs, tells of its connections there, from C++.
    """
    sys.stdout.flush()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout = _output(os.dup(1), sys.stdout)
        os.dup2(2, 1)


def _output(number: int, like: io.TextIOWrapper) -> io.TextIOWrapper:
    """Standard output as the file of this number, buffered as another is."""
    file = io.BufferedWriter(Output(number, "w", closefd=False))
    return io.TextIOWrapper(file, like.encoding, errors="replace",
                            line_buffering=like.line_buffering)
