"""Progress of a command on standard error: a bar on a terminal, elsewhere a line now and then."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

from dsjax.errors import say

EVERY_S = 10.0
Tell = Callable[[str, int, int], None]
"""Told of what is being done, how many of it are done, and of how many."""


@contextlib.contextmanager
def bar() -> Iterator[Tell]:
    """Show several things one after the other, each with the time left."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    from dsjax.terminal import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield _lines()
        return
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(),
               TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    tasks = {}
    with Progress(*columns, console=console) as shown:
        def tell(name: str, done: int, total: int) -> None:
            if name not in tasks:
                tasks[name] = shown.add_task(name, total=total)
            shown.update(tasks[name], completed=done)

        yield tell


def _lines() -> Tell:
    """Progress in plain lines: the first and the last of each thing, and every ten seconds."""
    last: dict[str, float] = {}

    def tell(name: str, done: int, total: int) -> None:
        now = time.monotonic()
        if name in last and done < total and now - last[name] < EVERY_S:
            return
        last[name] = now
        say(f"{name}: {done:,} of {total:,}")

    return tell
