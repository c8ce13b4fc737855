"""Programs that a model wrote, run where they can do no harm and cannot decide their own verdict.

A program runs in a process of its own behind walls (dsjax.evaluate.grade.walls): no network, no new
process, no file but Python's own library (no package beside it, such as numpy) and an empty folder
that is removed after, an environment of three variables, nothing on standard input; limits of time,
CPU, memory, threads, files and output. Where a kernel has no such walls nothing is run, and a
sentence says so.

A check runs in a second such process (dsjax.evaluate.grade.checker) and calls the program's
functions with copies of its arguments. So the program sees the inputs of each call and never what
is expected, and `Outcome.ending` is "end" only if the check itself reached its end. It is
no defense against a program that knows the answers of a public benchmark.

Without a check, "end" is the program's own word: it shares its process with whatever would look.
"""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dsjax.errors import UserError
from dsjax.evaluate.grade import walls, wire

Ending = Literal["end", "raised", "exited", "killed", "cpu", "time", "threads", "disk", "output"]
ROOT = str(Path(__file__).parents[3])
# Not -I, which would leave out PYTHONHASHSEED: an order of a set that changes between two runs
# would change verdicts. The environment is wiped instead, and -P -s leave out the rest of -I.
COMMAND = ("-s", "-S", "-P", "-B", "-c", f"import sys; sys.path.append({ROOT!r}); from dsjax."
           "evaluate.grade import supervisor; sys.path.pop(); supervisor.main()")


@dataclass(frozen=True)
class Limits:
    """Bounds of a program, and of its check."""

    cpu_seconds: int = 6
    """Of CPU, so that a busy machine changes no verdict; openai/human-eval gives 3 of the clock."""
    seconds: float = 20.0
    """Of the wall's clock, for those that wait."""
    memory: int = 1 << 30
    """Bytes of address space, of the program and of its check each."""
    disk: int = 8 << 20
    """Bytes of a file, and of all in the folder."""
    files: int = 32
    """Open at once, and in the folder."""
    threads: int = 32
    output: int = 1 << 20
    """Bytes printed."""


LIMITS = Limits()


@dataclass(frozen=True)
class Check:
    """Code that judges a program from outside."""

    text: str
    """It passes if it runs to its end."""
    asks: tuple[str, ...]
    """Names in it that are the program's."""
    given: str = ""
    """Code whose definitions it can use."""


@dataclass(frozen=True)
class Program:
    """A program and its check."""

    text: str
    check: Check | None = None


@dataclass(frozen=True)
class Outcome:
    """The end of a program."""

    ending: Ending
    error: str
    """One line; empty if it reached its end."""
    output: str
    """All that it printed, up to the limit."""
    seconds: float


def require() -> None:
    """Refuse a machine without walls.

    Raises:
        UserError: it has none.
    """
    if (reason := walls.reason()) is not None:
        raise UserError(reason)


def run(program: str | Program, limits: Limits = LIMITS) -> Outcome:
    """Run a program behind walls; safe from several threads at once.

    Raises:
        UserError: this machine has no walls, or the kernel refuses one.
    """
    require()
    asked = Program(program) if isinstance(program, str) else program
    folder = tempfile.mkdtemp(prefix="dsjax-run-")
    request = {"program": asked.text, "limits": dataclasses.asdict(limits), "folder": folder}
    check = None if asked.check is None else dataclasses.asdict(asked.check)
    process = subprocess.Popen(
        [sys.executable, *COMMAND], cwd="/", env={"PYTHONHASHSEED": "0", "LANG": "C.UTF-8"},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0,
        start_new_session=True)
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        with contextlib.suppress(BrokenPipeError):
            wire.send(process.stdin.fileno(), request)
            wire.send(process.stdin.fileno(), check)
        try:
            told = wire.receive(process.stdout.fileno())
        except wire.ClosedError as error:
            said = process.stderr.read().decode(errors="replace").strip()
            raise RuntimeError(f"the supervisor of a program failed: {said}") from error
    finally:
        process.stdin.close()  # it then clears everything away, wherever it is
        process.wait()
        process.stdout.close()
        process.stderr.close()
        shutil.rmtree(folder, ignore_errors=True)
    if "refused" in told:
        raise UserError(f"untrusted code is not run here: {told['refused']}; use another machine "
                        "or container")
    return Outcome(**told)


def run_all(programs: Iterable[str | Program], limits: Limits = LIMITS,
            workers: int = 2) -> list[Outcome]:
    """Run programs, several at a time; return outcomes in their order."""
    require()
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(lambda program: run(program, limits), programs))
