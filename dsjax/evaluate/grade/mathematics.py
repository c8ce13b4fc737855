"""Answers of mathematics: read out of a text, and compared by math-verify within a time limit.

`equal` is lm-evaluation-harness 0.4.13's `math_verify` (lm_eval/tasks/minerva_math/utils.py):
`verify(gold=parse(gold), target=parse(answer))`, with math-verify's own reading of both: of a
text's boxes, formulas and numbers the last, but boxes outside dollar signs together, as a set. A
bare formula is read as numbers; it goes in dollar signs.

math-verify keeps its limits by an alarm, which only a process's main thread can set and which does
not end a power of two numbers in C. Here other processes compare, one for each thread that asks at
a time; each is ended when its time is up, and replaced. Its time is CPU time: a busy machine
changes no verdict.

Extraction: `boxed` as lm_eval/tasks/hendrycks_math/utils.py (last_boxed_only_string, remove_boxed)
and, but for a percent sign behind the box, the last of DeepSeek-Math's evaluation/data_processing/
answer_extraction.py (extract_boxed_answers); `marked_number` and `last_number` as the filters
strict-match and flexible-extract of lm_eval/tasks/gsm8k/gsm8k.yaml, version 3.0.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import importlib.util
import json
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import NamedTuple

from dsjax.errors import UserError

MARKED = re.compile(r"#### (\-?[0-9\.\,]+)")
NUMBER = re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)")
MOST_CHARACTERS = 1 << 16
"""Of a text that is compared: its end holds the answer."""

_idle: list[subprocess.Popen[str]] = []
_lock = threading.Lock()


class Comparison(NamedTuple):
    """Two answers side by side."""

    is_equal: bool
    reading: str
    """The answer as math-verify reads it, which equal ones share; "" where it finds none."""


def equal(answer: str, gold: str, seconds: float = 5.0) -> bool:
    """Compare an answer with the right one as `compare` does."""
    return compare(answer, gold, seconds).is_equal


def compare(answer: str, gold: str, seconds: float = 5.0) -> Comparison:
    """Compare an answer with the right one; not equal where that takes too long.

    seconds: of CPU.

    Raises:
        UserError: math-verify is not installed.
    """
    require()
    texts = {"answer": answer[-MOST_CHARACTERS:], "gold": gold[-MOST_CHARACTERS:]}
    with _lock:
        comparer = _idle.pop() if _idle else None
    comparer = comparer or _started()
    try:
        assert comparer.stdin is not None
        assert comparer.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            comparer.stdin.write(json.dumps({**texts, "seconds": seconds}) + "\n")
            comparer.stdin.flush()
        told = comparer.stdout.readline()
    except BaseException:
        _end(comparer)
        raise
    if not told:  # its time was up, or its memory
        _end(comparer)
        return Comparison(False, "")
    with _lock:
        _idle.append(comparer)
    return Comparison(*json.loads(told))


@functools.cache
def require() -> None:
    """Refuse an installation without math-verify.

    Raises:
        UserError: it is not there.
    """
    if importlib.util.find_spec("math_verify") is None:
        raise UserError("answers of mathematics are compared by math-verify, which is not "
                        "installed; pip install 'dsjax[evaluate]'")


@atexit.register
def close() -> None:
    """End the processes that wait for something to compare."""
    with _lock:
        ended, _idle[:] = _idle[:], []
    for comparer in ended:
        _end(comparer)


def boxed(text: str) -> str | None:
    r"""Return the content of a text's last \boxed{...} (or \fbox{...}); None without one."""
    if "\\boxed " in text:
        return text.split("\\boxed ")[-1].split("$")[0]
    word = "\\boxed" if "\\boxed" in text else "\\fbox"
    inner = text.rpartition(word)[2] if word in text else ""
    depth = 0
    for brace in re.finditer(r"[{}]", inner) if inner.startswith("{") else ():
        depth += 1 if brace[0] == "{" else -1
        if depth == 0:
            return inner[1 : brace.start()]
    return None


def marked_number(text: str) -> str | None:
    """Return the number after GSM8K's first mark, "#### "; None without one."""
    found = MARKED.search(text)
    return found[1] if found else None


def last_number(text: str) -> str | None:
    """Return the last number of a text, with its dollar signs, commas and points; None without."""
    found = None
    for found in NUMBER.finditer(text):  # noqa: B007
        continue
    return found[0] if found else None


def _started() -> subprocess.Popen[str]:
    comparer = subprocess.Popen(
        [sys.executable, "-I", str(Path(__file__).with_name("comparer.py"))], text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        start_new_session=True)
    assert comparer.stdout is not None
    told = comparer.stdout.readline()
    if (reason := json.loads(told or '"it ended at once"')) is not None:
        _end(comparer)
        raise UserError(f"math-verify cannot be used ({reason}); pip install 'dsjax[evaluate]'")
    return comparer


def _end(comparer: subprocess.Popen[str]) -> None:
    comparer.kill()
    for pipe in (comparer.stdin, comparer.stdout):
        if pipe is not None:
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
    comparer.wait()
