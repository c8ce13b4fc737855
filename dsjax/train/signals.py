"""How a run is told to stop: SIGTERM or a first ctrl-C after the present step, a second at once.

The second ends the process where it stands, as kill -9 would: threads that write a checkpoint, or
wait for one, could neither be stopped nor joined in time. Nothing is lost that was whole: a
checkpoint comes into being by one rename.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from typing import Any, NoReturn

import jax
from jax.experimental import multihost_utils

INTERRUPTED = 128 + signal.SIGINT


class Signals:
    """Turns SIGTERM and the first ctrl-C into a request to stop; a second ctrl-C ends at once."""

    def __init__(self) -> None:
        self.received: int | None = None

    def _note(self, number: int, _frame: Any) -> None:
        if self.received is not None and number == signal.SIGINT:
            end_at_once()
        self.received = number

    def is_told(self, done: int) -> bool:
        """Whether to stop after `done` steps; the same answer in every process."""
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


def end_at_once() -> NoReturn:
    """Say that a second ctrl-C came, and end; nothing waits and nothing is cleaned up."""
    show_cursor = b"\x1b[?25h" if sys.stdout.isatty() else b""
    with contextlib.suppress(OSError):
        os.write(sys.stderr.fileno(), show_cursor + b"\ndsjax: interrupted\n")
    os._exit(INTERRUPTED)
