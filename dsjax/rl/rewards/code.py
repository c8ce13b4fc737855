"""Code: the program that an output ends with passes its tests, in the sandbox.

R1 report, sec. 2.2.2: feedback of a compiler on test cases. Tests run in another process than the
program, which never sees what is expected (dsjax.evaluate.grade.sandbox).
"""

from __future__ import annotations

from dsjax.evaluate.grade import code as graded
from dsjax.rl.rewards import sections

FENCE = "```"
MOST_CHARACTERS = 1 << 16
"""Of a program; a longer one fails."""


def code(prompt: str, text: str, reference: str) -> float:
    """1 if the last fenced block after the reasoning passes the reference, which is its asserts.

    Raises:
        UserError: this machine has no walls to run a program behind.
    """
    program = block(sections.final(prompt, text) or "")
    if program is None or len(program) > MOST_CHARACTERS:
        return 0.0
    return float(graded.passed(graded.mbpp(program, (), (reference,))))


def block(text: str) -> str | None:
    """The last fenced block of a text; None without one, and where a fence is left open."""
    pieces = text.split(FENCE)
    if len(pieces) < 3 or len(pieces) % 2 == 0:
        return None
    head, newline, body = pieces[-2].partition("\n")
    return body if newline and head.strip().lower() in ("", "python", "py", "python3") else None
