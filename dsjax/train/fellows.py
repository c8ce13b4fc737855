"""Processes that train together watch each other: when one is gone, the others say which and leave.

A collective whose member is gone may wait for ever. So each process writes a beat to the run's
folder every few seconds, from a thread of its own, and reads the beats of the others. A beat that
stays the same for `SILENCE_S` seconds of this process's own clock is of a process that is gone, or
has lost the folder: this one says so in a sentence and ends, with what it was doing.

JAX's own watch is for a coordinator that is gone: its client calls abort() at once, without a word
of who. That abort is held up until the beats have told.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import jax

from dsjax.checkpoint.store import StoreError
from dsjax.errors import UserError

BEAT_S, SILENCE_S = 2.0, 20.0
LEFT = 3
"""Exit status of a process that left because another was gone."""


class Fellows:
    """The other processes of a run, by their beats in a folder that all of them reach."""

    def __init__(self, folder: Path, mine: int, count: int) -> None:
        self.folder, self.mine, self.count = folder, mine, count
        self._beat = 0
        self._seen: dict[int, tuple[str, float]] = {}

    def beat(self) -> None:
        """Say that this process is alive."""
        self._beat += 1
        draft = self.folder / f".{self.mine}"
        draft.write_text(f"{os.getpid()} {self._beat}")
        os.replace(draft, self.folder / str(self.mine))

    def gone(self) -> list[int]:
        """Processes that were heard and have been silent for too long."""
        now = time.monotonic()
        for other in range(self.count):
            path = self.folder / str(other)
            text = path.read_text() if path.exists() else ""
            if text and text != self._seen.get(other, ("", 0.0))[0]:
                self._seen[other] = (text, now)
        return [other for other, (text, when) in sorted(self._seen.items())
                if other != self.mine and text != "done" and now - when > SILENCE_S]

    def sentence(self, gone: list[int]) -> str:
        """What to say of processes that are gone."""
        one = f"process {gone[0]}" if len(gone) == 1 else f"processes {gone}"
        return (f"{one} of {self.count} cannot be heard any more, so process {self.mine} leaves; "
                "the same command started again goes on from the newest checkpoint")

    def finish(self) -> None:
        """Say that this process ends as it should."""
        (self.folder / str(self.mine)).write_text("done")


@contextlib.contextmanager
def watching(folder: Path) -> Iterator[None]:
    """Beat and watch while the block runs; nothing for a single process."""
    if jax.process_count() == 1:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    fellows = Fellows(folder, jax.process_index(), jax.process_count())
    (folder / str(fellows.mine)).unlink(missing_ok=True)
    is_over = threading.Event()
    thread = threading.Thread(target=_watch, args=(fellows, is_over), daemon=True, name="fellows")
    thread.start()
    try:
        with _abort_waits():
            try:
                yield
            except Exception as error:
                if isinstance(error, UserError) and not isinstance(error, StoreError):
                    raise
                # A collective, a save, whatever was under way: is it because another is gone?
                _wait()
                if not isinstance(error, jax.errors.JaxRuntimeError):
                    raise
                raise UserError(
                    f"a step failed on process {fellows.mine} ({str(error)[:200]}); the same "
                    "command goes on from the newest checkpoint") from error
    finally:
        is_over.set()
        thread.join()
    fellows.finish()


def _wait() -> None:
    """Give the watching thread time to learn who is gone: it then ends the process."""
    until = time.monotonic() + 2 * SILENCE_S
    while time.monotonic() < until:
        time.sleep(BEAT_S)


@contextlib.contextmanager
def _abort_waits() -> Iterator[None]:
    """Make an abort() of a native thread wait until the beats have told who is gone.

    A handler of Python's own would not do: it runs in the main thread, after abort() is done.
    """
    libc = ctypes.CDLL(None)
    libc.signal.restype = ctypes.c_void_p
    libc.signal.argtypes = [ctypes.c_int, ctypes.c_void_p]
    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(lambda _number: _wait())
    former = libc.signal(signal.SIGABRT, ctypes.cast(handler, ctypes.c_void_p))
    try:
        yield
    finally:
        libc.signal(signal.SIGABRT, former)


def _watch(fellows: Fellows, is_over: threading.Event) -> None:
    """Beat, look around, and end the process when another is gone: its main thread may be stuck."""
    while not is_over.wait(BEAT_S):
        fellows.beat()
        if gone := fellows.gone():
            print(f"dsjax: {fellows.sentence(gone)}", file=sys.stderr, flush=True)
            os._exit(LEFT)
