"""The process between a caller and a program: it starts it behind walls, watches and ends it.

A process of its own, as the caller has threads, which may not fork and go on in Python. Two are
forked from it: the program, before the check's text has been read, so that no copy of it is in the
program's memory; then the check, with a pair of pipes between them. Whatever happens the program
is killed, whose threads die with it, and both are waited for: no zombie. Should a process get past
the filter nevertheless, it becomes a child of this one (PR_SET_CHILD_SUBREAPER) and is killed too.
Should this process be killed, the kernel kills its children (PR_SET_PDEATHSIG); should the caller
be, the pipe that it holds closes.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import resource
import select
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from dsjax.evaluate.grade import candidate, checker, walls, wire

TICK = 0.02
"""Seconds between two looks at threads and files."""
START_SECONDS = 60.0
"""For walls to be up, on a busy machine."""
GONE_SECONDS = 1.0
"""For a process to end whose pipes are closed, as they are a moment before it has ended."""
STACK = 8 << 20
READY = b"ready\n"
REQUESTS, ANSWERS, REPORT = 3, 4, 5
"""File descriptors of a child."""


class Child(NamedTuple):
    """A process behind walls."""

    pid: int
    ended: int
    """File descriptor that is readable once it has ended."""
    reports: int
    """Read end of a pipe: READY before anything untrusted ran, then at most one line of JSON."""


def main() -> None:
    """Read a request from standard input, carry it out and write the outcome to standard output.

    Request, in two messages: {"program", "limits", "folder"}, then {"given", "asks", "text"} or
    None. Outcome: {"ending", "error", "output", "seconds"}, or {"refused"}.
    """
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
    request = wire.receive(0)
    wire.send(1, _carry_out(request))


def _carry_out(request: dict[str, Any]) -> dict[str, Any]:
    limits, folder = request["limits"], request["folder"]
    to_program, to_check, output = os.pipe(), os.pipe(), os.pipe()
    started: list[Child] = []
    try:
        grants = walls.python()

        def answer(report: Callable[[str | None], None]) -> None:
            scope: dict[str, Any] = {}
            error = candidate.run(request["program"], scope)
            report(error)
            if error is None:
                wire.send(ANSWERS, {})
                candidate.serve(scope, REQUESTS, ANSWERS)

        def check(report: Callable[[str | None], None]) -> None:
            link = checker.Link(answers=ANSWERS, requests=REQUESTS)
            report(checker.run(text["given"], text["asks"], text["text"], link))

        started.append(_start(answer, [*grants, walls.Grant(folder, walls.WRITE)], request,
                              (output[1], to_program[0], to_check[1])))
        text = wire.receive(0)
        if text is not None:
            started.append(_start(check, grants, request,
                                  (None, to_program[1], to_check[0])))
        for end in (output[1], *to_program, *to_check):
            os.close(end)
        for child in started:
            if (refused := _refusal(child)) is not None:
                return {"refused": refused}
        return _watch(started, output[0], limits, folder)
    finally:
        clear()
        _empty(folder)


def _start(do: Callable[[Callable[[str | None], None]], None], grants: list[walls.Grant],
           request: dict[str, Any], ends: tuple[int | None, int, int]) -> Child:
    """Fork a child that puts up walls and does a thing.

    ends: where it prints, and its ends of the pipes: REQUESTS and ANSWERS.
    """
    report, reported = os.pipe()
    pid = os.fork()
    if pid:
        os.close(reported)
        return Child(pid, os.pidfd_open(pid), report)
    try:
        os.setsid()
        nowhere = os.open(os.devnull, os.O_RDWR)
        output, requests, answers = ends
        kept = (nowhere, *(nowhere if output is None else output,) * 2, requests, answers, reported)
        for to, end in enumerate([fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in kept]):
            os.dup2(end, to)
        os.closerange(REPORT + 1, 1 << 16)
        _settle(request, grants)
        os.write(REPORT, READY)
        do(_report)
    except BaseException as error:
        with contextlib.suppress(OSError):
            _report(candidate.describe(error))
    finally:
        os._exit(0)


def _report(error: str | None) -> None:
    os.write(REPORT, json.dumps({"error": error}).encode() + b"\n")


def _settle(request: dict[str, Any], grants: list[walls.Grant]) -> None:
    """Take on folder, environment, limits and walls."""
    limits, folder = request["limits"], request["folder"]
    os.chdir(folder)
    os.environ.clear()
    os.environ |= {"HOME": folder, "TMPDIR": folder, "LANG": "C.UTF-8"}
    walls.enter(grants, {
        resource.RLIMIT_CPU: limits["cpu_seconds"],
        resource.RLIMIT_AS: limits["memory"],
        resource.RLIMIT_FSIZE: limits["disk"],
        resource.RLIMIT_NOFILE: limits["files"],
        resource.RLIMIT_STACK: STACK,
        resource.RLIMIT_MEMLOCK: 0,
    })


def _refusal(child: Child) -> str | None:
    """Wait until a child's walls are up; return why they are not."""
    told, deadline = b"", time.monotonic() + START_SECONDS
    while not told.startswith(READY):
        ready, _, _ = select.select([child.reports], [], [], max(0, deadline - time.monotonic()))
        part = os.read(child.reports, len(READY) - len(told)) if ready else b""
        if not part:
            return "no walls within a minute" if not ready else "walls could not be put up"
        told += part
        if not READY.startswith(told):
            return json.loads(told + os.read(child.reports, 4096))["error"]
    return None


def _watch(children: list[Child], output: int, limits: dict[str, Any],
           folder: str) -> dict[str, Any]:
    """Wait for the verdict, or for a limit."""
    start = time.monotonic()
    deadline = start + limits["seconds"]
    judge = children[-1]
    printed, told = bytearray(), {child.reports: bytearray() for child in children}
    poll = select.poll()
    for source in (0, output, *told, judge.ended):
        poll.register(source, select.POLLIN)
    ending, look = "", start
    while not ending:
        now = time.monotonic()
        events = dict(poll.poll(max(0, 1000 * min(TICK, deadline - now))))
        if 0 in events:
            raise SystemExit(1)  # the caller is gone
        for source in events.keys() & {output, *told}:
            part = os.read(source, 1 << 16)
            if not part:
                poll.unregister(source)
            (printed if source == output else told[source]).extend(part)
        if judge.ended in events:  # with a last word in the pipe, perhaps
            told[judge.reports] += os.read(judge.reports, 1 << 16)
        if b"\n" in told[judge.reports] or judge.ended in events:
            ending = "decided"
        elif len(printed) > limits["output"] or any(len(t) > 4096 for t in told.values()):
            ending = "output"
        elif time.monotonic() >= deadline:
            ending = "time"
        elif now >= look:
            look, ending = now + TICK, _excess(children, limits, folder)
    return {
        **_outcome(children, told, ending, limits),
        "output": printed[: limits["output"]].decode(errors="replace"),
        "seconds": time.monotonic() - start,
    }


def _excess(children: list[Child], limits: dict[str, Any], folder: str) -> str:
    for child in children:
        with contextlib.suppress(OSError, IndexError):
            if int(_stat(child.pid)[17]) > limits["threads"]:
                return "threads"
    size = 0
    for count, entry in enumerate(os.scandir(folder), 1):
        with contextlib.suppress(OSError):
            size += entry.stat(follow_symlinks=False).st_blocks * 512
        if count > limits["files"] or size > limits["disk"]:
            return "disk"
    return ""


def _outcome(children: list[Child], told: dict[int, bytearray], ending: str,
             limits: dict[str, Any]) -> dict[str, Any]:
    """Return how it ended: the check's word alone passes, the program's end says why it does not.
    """
    program, judge = children[0], children[-1]
    if ending != "decided":
        return {"ending": ending, "error": f"over its limit of {ending}"}
    verdict = _error(told[judge.reports])
    if verdict is None:
        return {"ending": "end", "error": ""}
    cause = _error(told[program.reports])
    if cause:
        return {"ending": "raised", "error": cause}
    silent = {"": judge, checker.GONE: program}.get(verdict)
    if silent is not None and (died := _death(silent, limits)) is not None:
        return died
    return {"ending": "raised", "error": verdict or "ended without a verdict"}


def _error(told: bytearray) -> str | None:
    """The error that a child reports: None if it says that there is none, "" if it says nothing."""
    with contextlib.suppress(ValueError, LookupError, TypeError, RecursionError):
        error = json.loads(bytes(told).split(b"\n")[0])["error"]
        return None if error is None else str(error)
    return ""


def _death(child: Child, limits: dict[str, Any]) -> dict[str, Any] | None:
    """Return how a child ended by itself; None if it only closed its pipes, and goes on."""
    if not select.select([child.ended], [], [], GONE_SECONDS)[0]:
        return None
    found = os.waitid(os.P_PIDFD, child.ended, os.WEXITED | os.WNOWAIT)
    assert found is not None
    if found.si_code == os.CLD_EXITED:
        return {"ending": "exited", "error": f"ended itself with status {found.si_status}"}
    used = sum(map(int, _stat(child.pid)[11:13])) / os.sysconf("SC_CLK_TCK")
    is_told = found.si_status == signal.SIGXCPU  # as the kernel counts; `used` is sampled
    if is_told or used > limits["cpu_seconds"] - 0.5:
        return {"ending": "cpu", "error": f"over its limit of {limits['cpu_seconds']} CPU seconds"}
    return {"ending": "killed", "error": f"killed by signal {found.si_status}"}


def _stat(pid: int) -> list[bytes]:
    """The fields of /proc/PID/stat from the third on (proc(5)), after a name of any bytes."""
    return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()


def clear() -> None:
    """Kill every child of this process, whoever becomes one then too, and wait for all."""
    own = Path(f"/proc/self/task/{os.getpid()}/children")
    while True:
        for pid in own.read_text().split():
            os.kill(int(pid), signal.SIGKILL)
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def _empty(folder: str) -> None:
    """Remove a folder of files."""
    with contextlib.suppress(FileNotFoundError):
        for entry in os.scandir(folder):
            os.unlink(entry.path)
        os.rmdir(folder)
