"""A file of JSON lines that outlives crashes: one writer, whole lines, damaged ones set aside.

A power cut leaves NUL bytes or half a line, a copy may lose its encoding, an editor its keys. What
is no event (an object with a whole `step`, a `kind`, and else numbers, null or lists of them) is
left out in reading; a writer that goes on moves it to a file beside, `NAME.damaged`, and says so.

The writer holds a lock of the kernel on the file itself, which ends with the process. Readers need
none: a file is appended to in whole lines or replaced in one move.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dsjax import disk
from dsjax.errors import UserError

Event = dict[str, Any]
Say = Callable[[str], Any]
DAMAGED = ".damaged"
LIMIT = 64 << 30
REMEDY = "move it away, or name another --output.folder"


def read(path: Path) -> tuple[list[Event], int]:
    """The events of a file in the order of its lines, and the number of damaged lines.

    The end of a file that is still being written is no damage.
    """
    whole, damaged, _ = _parted(disk.read_bytes(path, "give a metrics.jsonl of a run", LIMIT))
    return [event for event, _ in whole], len(damaged)


class LineFile:
    """A file of JSON lines, held by its one writer; `append` has written a line when it returns."""

    def __init__(self, path: Path, until: int | None, say: Say) -> None:
        """Open `path` anew (until None), or with the events up to the step `until`.

        A "final" event goes in any case: a run that goes on has not ended, or ends once more.
        """
        self.path = path
        disk.make_folder(path.parent, "name another --output.folder")
        try:
            self._handle = _claim(path)
            try:
                self._keep(until, say)
            except BaseException:
                os.close(self._handle)
                raise
        except OSError as error:
            raise self._failed(error) from error

    def append(self, event: Event) -> None:
        """Write one line."""
        line = (json.dumps(event, allow_nan=False) + "\n").encode()
        try:
            while line:
                line = line[os.write(self._handle, line):]
        except OSError as error:
            raise self._failed(error) from error

    def sync(self) -> None:
        """Have the disk hold all lines, also after a power cut; refused where the file is gone."""
        try:
            os.fsync(self._handle)
            if not os.path.samestat(os.fstat(self._handle), os.stat(self.path)):
                raise UserError(f"{self.path} has been replaced while it was being written; put "
                                "its folder back, or start the same command again")
        except OSError as error:
            raise self._failed(error) from error

    def close(self) -> None:
        """Let go of the file; again is fine."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    def _failed(self, error: OSError) -> UserError:
        return UserError(f"{self.path} cannot be written ({disk.cause(error)}); make room or name "
                         "another --output.folder, then start the same command again")

    def _keep(self, until: int | None, say: Say) -> None:
        """Cut the file back to `until`; the lines that are no events go into a file beside."""
        if until is None:
            os.ftruncate(self._handle, 0)
            return
        data = disk.read_bytes(self.path, REMEDY, LIMIT)
        whole, damaged, torn = _parted(data)
        ahead = re.match(rb'\{"step": (\d{1,18}),', torn)
        if torn and not (ahead and int(ahead[1]) > until):
            damaged.append(torn)  # not what a killed process leaves: that is of a step run again
        last = {(e["step"], e["kind"]): number for number, (e, _) in enumerate(whole)}
        kept: list[bytes] = []
        for number, (event, line) in enumerate(whole):
            if event["step"] > until or event["kind"] == "final":
                continue
            is_last = last[event["step"], event["kind"]] == number
            (kept if is_last else damaged).append(line)
        if damaged:
            aside = self.path.with_name(self.path.name + DAMAGED)
            with aside.open("ab") as file:
                file.write(b"".join(line + b"\n" for line in damaged))
                file.flush()
                os.fsync(file.fileno())
            count = "1 line" if len(damaged) == 1 else f"{len(damaged)} lines"
            say(f"{count} of {self.path} damaged or there twice: kept in {aside.name}")
        text = b"".join(line + b"\n" for line in kept)
        if text != data:
            self._replace(text)

    def _replace(self, text: bytes) -> None:
        """Put another file, held as this one is, in its place in one move."""
        path = Path(os.path.realpath(self.path))
        draft = path.with_name(path.name + ".new")
        draft.write_bytes(text)
        handle = _open(draft)
        try:
            _lock(handle, self.path)
            os.fsync(handle)
            os.replace(draft, path)
        except BaseException:
            os.close(handle)
            raise
        os.close(self._handle)
        self._handle = handle


def _parted(data: bytes) -> tuple[list[tuple[Event, bytes]], list[bytes], bytes]:
    """Events with their lines, damaged lines, and a last line that is not whole."""
    whole, damaged = [], []
    *lines, torn = data.split(b"\n")
    for line in lines:
        event = _event(line)
        if event is not None:
            whole.append((event, line))
        elif line.strip():
            damaged.append(line)
    event = _event(torn)
    if event is not None:
        whole.append((event, torn))
        torn = b""
    return whole, damaged, torn


def _event(line: bytes) -> Event | None:
    """Parse a line, numbers that are not finite as null; None where it is no event."""
    try:
        event = json.loads(line.decode("utf-8"), parse_constant=lambda _: None)
        if not isinstance(event, dict):
            return None
        step, kind = event.pop("step"), event.pop("kind")
        if type(step) is not int or not 0 <= step < 2**63 or type(kind) is not str:
            return None
        return {"step": step, "kind": kind} | {name: _value(v) for name, v in event.items()}
    except (ValueError, KeyError, RecursionError, OverflowError):
        return None


def _value(value: Any) -> Any:
    """A number, null where it is not finite, or a list of them."""
    if isinstance(value, list):
        return [_value(item) for item in value]
    if value is None or isinstance(value, int | float):
        return value if value is not None and math.isfinite(value) else None
    raise ValueError(f"{type(value).__name__} is no value of an event")


def _open(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, 0o666)


def _claim(path: Path) -> int:
    """Open and lock a file, which is there on return under this name."""
    while True:
        handle = _open(path)
        try:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise UserError(f"{path} is no regular file; {REMEDY}")
            _lock(handle, path)
            if os.path.exists(path) and os.path.samestat(os.fstat(handle), os.stat(path)):
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)  # replaced by its writer of before, between opening and locking


def _lock(handle: int, path: Path) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(f"{path} is being written by another process; wait for its end, or name "
                        "another --output.folder") from None
    except OSError:  # a file system without locks; the run's folder is held besides
        return
