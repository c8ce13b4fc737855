"""Processes that train together watch each other: when one is gone, the others say which and leave.

A collective whose member is gone may wait for ever. So each process writes a beat to the run's
folder every few seconds, from a thread of its own, and reads the beats of the others. A beat that
stays the same for `SILENCE_S` seconds of this process's own clock is of a process that is gone, or
has lost the folder: this one says so in a sentence and ends, with what it was doing. A process that
fails by itself leaves its sentence instead of a beat, and the others repeat it.

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
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils

from dsjax.checkpoint.store import StoreError
from dsjax.errors import UserError, say

BEAT_S, SILENCE_S = 2.0, 20.0
SENTENCE = 2048  # bytes of what the first process tells the others
FAILED = "failed "
LEFT = 3
"""Exit status of a process that left because another was gone."""


class Peers:
    """The other processes of a run, by their beats in a folder that all of them reach."""

    def __init__(self, folder: Path, mine: int, count: int) -> None:
        self.folder, self.mine, self.count = folder, mine, count
        self._beat = 0
        self._seen: dict[int, tuple[str, float]] = {}
        self._before = [self._read(other) for other in range(count)]  # of an earlier start

    def _read(self, number: int) -> str:
        path = self.folder / str(number)
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""

    def _write(self, text: str) -> None:
        draft = self.folder / f".{self.mine}"
        draft.write_text(text, encoding="utf-8")
        os.replace(draft, self.folder / str(self.mine))

    def beat(self) -> None:
        """Say that this process is alive."""
        self._beat += 1
        self._write(f"{os.getpid()} {self._beat}")

    def gone(self) -> list[int]:
        """Processes that were heard and have been silent for too long."""
        now = time.monotonic()
        for other in range(self.count):
            text = self._read(other)
            if text and text != self._seen.get(other, ("", 0.0))[0]:
                self._seen[other] = (text, now)
        return [other for other, (text, when) in sorted(self._seen.items())
                if other != self.mine and text != "done" and now - when > SILENCE_S]

    def failed(self) -> str | None:
        """Say which other process failed since the start, and why; None if none did."""
        for other in range(self.count):
            text = self._read(other)
            if other != self.mine and text.startswith(FAILED) and text != self._before[other]:
                why = text.removeprefix(FAILED).partition(" ")[2]
                return (f"process {other} of {self.count} failed, so process {self.mine} leaves: "
                        f"{why}")
        return None

    def sentence(self, gone: list[int]) -> str:
        """Say that processes are gone, and how to go on."""
        one = f"process {gone[0]}" if len(gone) == 1 else f"processes {gone}"
        return (f"{one} of {self.count} cannot be heard any more, so process {self.mine} leaves; "
                "the same command started again goes on from the newest checkpoint")

    def finish(self) -> None:
        """Say that this process ends as it should."""
        self._write("done")

    def fail(self, why: str) -> None:
        """Leave a sentence for the others, in place of beats."""
        self._write(f"{FAILED}{os.getpid()} {why}")


@contextlib.contextmanager
def watching(folder: Path) -> Iterator[None]:
    """Beat and watch while the block runs; nothing for a single process."""
    if jax.process_count() == 1:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    peers = Peers(folder, jax.process_index(), jax.process_count())
    peers.beat()
    is_over = threading.Event()
    thread = threading.Thread(target=_watch, args=(peers, is_over), daemon=True, name="peers")
    thread.start()
    try:
        with _abort_waits():
            try:
                # None fails before all have read what an earlier start left in the folder: its
                # sentence would be taken for one of those.
                multihost_utils.sync_global_devices("peers")
                yield
            except Exception as error:
                if isinstance(error, UserError) and not isinstance(error, StoreError):
                    raise
                # A collective, a save, whatever was under way: is it because another is gone?
                _wait()
                if not isinstance(error, jax.errors.JaxRuntimeError):
                    raise
                raise UserError(
                    f"a step failed on process {peers.mine} ({str(error)[:200]}); the same "
                    "command goes on from the newest checkpoint") from error
    except BaseException as error:
        is_over.set()
        thread.join()
        peers.fail(str(error) or type(error).__name__)
        raise
    is_over.set()
    thread.join()
    peers.finish()


def agree(decide: Callable[[], str]) -> str:
    """Return the first process's decision in every process; refuse in all of them where it does.

    It stays a moment after it has refused: the others' words would be lost with the coordinator.
    """
    if jax.process_count() == 1:
        return decide()
    said = b""
    if jax.process_index() == 0:
        try:
            said = b"+" + decide().encode()
        except UserError as error:
            said = b"-" + str(error).encode()
    told = np.zeros(SENTENCE, np.uint8)
    told[: len(said)] = np.frombuffer(said[:SENTENCE], np.uint8)
    told = np.asarray(multihost_utils.broadcast_one_to_all(told), np.uint8)
    heard = told.tobytes().rstrip(b"\0").decode(errors="ignore")
    if heard.startswith("-"):
        if jax.process_index() == 0:
            time.sleep(BEAT_S)
        raise UserError(heard[1:])
    return heard[1:]


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


def _watch(peers: Peers, is_over: threading.Event) -> None:
    """Beat, look around, and end the process when another is gone: its main thread may be stuck."""
    while not is_over.wait(BEAT_S):
        peers.beat()
        gone = peers.gone()
        why = peers.failed() or (peers.sentence(gone) if gone else None)
        if why is not None:
            say(f"dsjax: {why}")
            os._exit(LEFT)


def leave(error: UserError) -> NoReturn:
    """End a process of several for a reason of its own, without JAX's wait for the others."""
    say(f"dsjax: {error}")
    with contextlib.suppress(OSError, ValueError):  # a full disk, closed
        sys.stdout.flush()
    os._exit(2)
