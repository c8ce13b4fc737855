"""Folders that take long to make are made by one of the processes that run the tests."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """Give this process a folder of its own, a copy of what `make` fills in one of them.

    make: is handed a folder that is there and empty. Where it raises, the next process tries.
    """
    own = factory.mktemp(name)
    together = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        together = together.parent
    first = together / f"once-{name}"
    with (together / f"once-{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (first / "done").exists():
            shutil.rmtree(first, ignore_errors=True)
            (first / "here").mkdir(parents=True)
            make(first / "here")
            (first / "done").touch()
    return Path(shutil.copytree(first / "here", own / "here", symlinks=True))
