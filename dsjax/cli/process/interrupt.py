"""Ctrl-C: work ends as after an error, an import ends at once, and a second one ends everything.

An extension module that is interrupted while it is loaded aborts the process, or raises an error of
its own. So there the process just ends: nothing is lost, because imports write nothing.
"""

from __future__ import annotations

import os
import signal
from types import FrameType

from dsjax import cli
from dsjax.errors import say

STATUS = 130
IMPORTING = "<frozen importlib._bootstrap>"
_count = 0


def listen() -> None:
    """Take ctrl-C from here on, unless the process was started to ignore it, as by nohup."""
    if signal.getsignal(signal.SIGINT) in (signal.default_int_handler, cli.leave):
        signal.signal(signal.SIGINT, cli.leave)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # what was held back
        signal.signal(signal.SIGINT, _interrupt)


def hold_back() -> None:
    """Keep ctrl-C for after the process has replaced itself: until then it would be a traceback."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})


def ignore() -> None:
    """Let the process end in peace: Python's own end would die of another ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def was_received() -> bool:
    """Return True after ctrl-C; what a library raises after it may have any name."""
    return _count > 0


def tell() -> int:
    """Say that the command was interrupted; returns its status."""
    if os.isatty(2):
        say("")  # the terminal's ^C stands on a line of its own
    say("dsjax: interrupted")
    return STATUS


def _interrupt(_number: int, frame: FrameType | None) -> None:
    global _count
    _count += 1
    if _count > 1 or _is_importing(frame):
        os._exit(tell())
    raise KeyboardInterrupt


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename == IMPORTING:
            return True
        frame = frame.f_back
    return False
