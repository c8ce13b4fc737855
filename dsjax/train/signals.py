"""Signals that stop a run: SIGTERM or a first ctrl-C after the present step, a second at once.

The second ends the process where it stands, as kill -9 would: threads that write a checkpoint, or
wait for one, could neither be stopped nor joined in time. Nothing is lost that was whole: a
checkpoint comes into being by one rename.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from typing import IO, Any, NoReturn, cast

import jax
from jax.experimental import multihost_utils

from dsjax.terminal import Console

INTERRUPTED = 128 + signal.SIGINT


class Signals:
    """Turns SIGTERM and the first ctrl-C into a request to stop; a second ctrl-C ends at once."""

    def __init__(self) -> None:
        self.received: int | None = None
        self.lost: OSError | None = None
        """Error of output that cannot be written: its reader left, as `head` does; a full disk."""

    def _note(self, number: int, _frame: Any) -> None:
        if self.received is not None and number == signal.SIGINT:
            end_at_once()
        self.received = number

    @contextlib.contextmanager
    def writing(self, console: Console) -> Iterator[None]:
        """Within the block output that cannot be written is dropped, and is a request to stop.

        A process of several goes on without: the others would not stop with it.
        """
        former, console.file = console.file, cast(IO[str], Dropping(console.file, self))
        try:
            yield
        finally:
            console.file = former

    def is_told(self, done: int) -> bool:
        """Return True to stop after `done` steps; the same answer in every process."""
        if jax.process_count() == 1 and self.lost is not None:
            return True
        if jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(done):
            self.received = signal.SIGTERM
        return self.received is not None

    @contextlib.contextmanager
    def listening(self) -> Iterator[Signals]:
        """Listen within the block; handlers of before are put back, unless a ctrl-C came.

        Then the process is about to end, and a second one may come while threads are joined.
        """
        former: dict[int, Any] = {}
        # Several processes leave it to JAX's handler, by which they agree on a step.
        numbers = (signal.SIGTERM, signal.SIGINT) if jax.process_count() == 1 else ()
        with contextlib.suppress(ValueError):  # only the main thread may set handlers
            former = {n: signal.signal(n, self._note) for n in numbers}
        try:
            yield self
        finally:
            for number, handler in former.items():
                if self.received != number or number != signal.SIGINT:
                    signal.signal(number, handler)


class Dropping:
    """A text stream that drops what cannot be written, and tells why."""

    def __init__(self, file: IO[str], signals: Signals) -> None:
        self._file, self._signals = file, signals

    def write(self, text: str) -> int:
        """Write, or drop."""
        self._try(lambda: self._file.write(text))
        return len(text)

    def flush(self) -> None:
        """Have what was written reach the reader, if there is one."""
        self._try(self._file.flush)

    def _try(self, act: Callable[[], Any]) -> None:
        try:
            if self._signals.lost is None:
                act()
        except OSError as error:
            self._signals.lost = error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def end_at_once() -> NoReturn:
    """Say that a second ctrl-C came, and end; nothing waits and nothing is cleaned up."""
    show_cursor = b"\x1b[?25h" if sys.stdout.isatty() else b""
    with contextlib.suppress(OSError):
        os.write(sys.stderr.fileno(), show_cursor + b"\ndsjax: interrupted\n")
    os._exit(INTERRUPTED)
