"""The one exception that a command line turns into a sentence, and how it is shown.

Names and messages from files reach a terminal in such sentences. `printable` keeps them from being
obeyed there: it is applied once, where a sentence is printed, by `say` and by the console of
dsjax.terminal.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from typing import TextIO

# Controls but newline and tab, marks that turn the direction of writing, halves of surrogate pairs.
_OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069"
                     "\ud800-\udfff]")


class UserError(ValueError):
    """Bad input: a sentence with cause, values and remedy; the CLI prints it and exits with 2."""


class QueueFullError(UserError):
    """More wait than are taken; the same request may be served later."""


def printable(text: object) -> str:
    r"""Return a text with characters that a terminal would obey written out, as `\x1b`."""
    return _OBEYED.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), str(text))


def say(sentence: object) -> None:
    """Print a sentence as one line on standard error; one that nobody can read any more is lost."""
    line = printable(sentence).replace("\n", "\\n")
    if sys.stderr is not None:  # it is None where a process was started without one
        try:
            print(line, file=sys.stderr, flush=True)
        except (OSError, ValueError):  # a full disk, a reader that left, closed
            drop(sys.stderr)


def drop(stream: TextIO) -> None:
    """Send to nowhere what a stream still holds, so that the process ends with its own status."""
    with contextlib.suppress(OSError, ValueError), open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), stream.fileno())
