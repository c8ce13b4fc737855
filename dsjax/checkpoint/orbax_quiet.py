"""orbax without its remarks on a terminal: failures arrive as exceptions, and are said there."""

from __future__ import annotations

import functools
import logging
import sys
from typing import Any


@functools.cache
def orbax() -> Any:
    """Import orbax when it is needed (0.4 s) and keep what it says besides from the terminal.

    What it logs about a failure is a traceback. After a failed save it closes its event loop, and a
    write of the same save that ends later finds nobody to tell, which Python prints.
    """
    from orbax.checkpoint import v1

    logging.getLogger("absl").setLevel(logging.CRITICAL)
    logging.getLogger("asyncio").addFilter(_is_not_orbax)
    shown = sys.unraisablehook

    def show(unraisable: Any) -> None:
        error = unraisable.exc_value
        if not (isinstance(error, RuntimeError) and str(error) == "Event loop is closed"):
            shown(unraisable)

    sys.unraisablehook = show
    return v1


def _is_not_orbax(record: logging.LogRecord) -> bool:
    return "orbax" not in record.getMessage()
