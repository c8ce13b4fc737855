"""The console that everything of dsjax is shown on: texts appear whole, and none is obeyed.

rich takes `[red]` in a printed path for markup and passes escape sequences of a file's name on to
the terminal. Here neither happens, whoever prints, and lines are not wrapped.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import rich.console
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from dsjax.errors import printable


class Console(rich.console.Console):
    """rich's console without markup, emoji, highlighting or wrapping of texts."""

    def __init__(self, **settings: Any) -> None:
        """Take rich's settings."""
        super().__init__(**{"markup": False, "emoji": False, "highlight": False} | settings)

    def print(self, *objects: Any, soft_wrap: bool | None = None, **settings: Any) -> None:
        """Print; texts are wrapped by the terminal only, so that a path can be copied whole."""
        if soft_wrap is None:
            soft_wrap = all(isinstance(thing, str | Text) for thing in objects)
        super().print(*objects, soft_wrap=soft_wrap, **settings)

    def print_whole(self, *tables: Table) -> None:
        """Print tables as wide as their numbers are: a terminal wraps lines, and cuts none."""
        there = self.width
        options = self.options.update(width=100_000)
        for table in tables:
            self.width = max(there, self.measure(table, options=options).maximum)
            super().print(table, crop=False)
            self.width = there

    def on_broken_pipe(self) -> None:
        """Let the command end as after `print`: the reader has left."""
        raise BrokenPipeError

    def render_str(self, text: str, **settings: Any) -> Text:
        """Lay out a plain string, as long as it will be shown."""
        return super().render_str(printable(text), **settings)

    def _render_buffer(self, buffer: Iterable[Segment]) -> str:
        """Turn segments into text; all that is printed, drawn or animated passes here."""
        return super()._render_buffer(
            segment if segment.control else segment._replace(text=printable(segment.text))
            for segment in buffer)
