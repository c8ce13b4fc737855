"""Processes that a test leaves behind."""

import contextlib
import ctypes
from collections.abc import Iterator
from pathlib import Path


def children() -> set[str]:
    """Ids of this process's children, dead ones that nobody waited for among them."""
    found: set[str] = set()
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a thread that has ended
            found |= set((task / "children").read_text().split())
    return found


@contextlib.contextmanager
def adopting() -> Iterator[None]:
    """Become the parent of whatever a descendant leaves behind, so that `children` shows it."""
    libc = ctypes.CDLL(None)
    libc.prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
    try:
        yield
    finally:
        libc.prctl(36, 0, 0, 0, 0)
