"""Display of training: a live panel in a terminal, plain lines elsewhere.

Both take the same plain dicts of numbers. Names in `FIELDS` are shown with their label and unit,
any other name as it is; what a run does not report is left out. Values stay on the panel until they
are reported again (held-out loss comes only with an evaluation); a line shows what is new since the
line before.
"""

import math
import time
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any, Protocol, Self

from rich.console import Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from dsjax.errors import printable
from dsjax.terminal import Console

Values = Mapping[str, Any]

FIELDS: dict[str, tuple[str, Callable[[float], str]]] = {
    "loss": ("loss", "{:.3f}".format),
    "bits_per_byte": ("held out", "{:.3f} bits/byte".format),
    "tok_s": ("speed", "{:,.0f} tok/s".format),
    "mfu": ("peak share", "{:.1%}".format),
    "learning_rate": ("rate", "{:.2e}".format),
    "grad_norm": ("gradient", "{:.3f}".format),
    "max_vio": ("MaxVio", "{:.2f}".format),
    "dead_experts": ("dead experts", "{:.0f}".format),
    "mtp_loss": ("MTP loss", "{:.3f}".format),
    "mtp_acceptance": ("MTP accepts", "{:.1%}".format),
    "skipped": ("skipped", "{:.0f}".format),
    "reward": ("reward", "{:.3f}".format),
    "length": ("length", "{:.1f} tokens".format),
    "constant_groups": ("equal groups", "{:.0%}".format),
    "truncated": ("truncated", "{:.0%}".format),
    "clipped": ("clipped", "{:.1%}".format),
    "entropy": ("entropy", "{:.3f}".format),
    "kl": ("KL", "{:.4f}".format),
    "equal_routes": ("equal routes", "{:.2%}".format),
    "outside": ("ratio off", "{:.2%}".format),
    "rollout_tok_s": ("rollout", "{:,.0f} tok/s".format),
    "train_tok_s": ("training", "{:,.0f} tok/s".format),
    "eta": ("left", lambda seconds: clock(seconds)),
}
ALARMS = {"dead_experts": "yellow", "skipped": "red"}  # colored when above zero
STYLES = {"warning": "yellow"}  # of rows of the header
TURN = "|/-\\"
LABEL, CELL = 13, 28  # columns of a label, and of a label with its value
BARS, ASCII_BARS = "".join(map(chr, range(0x2581, 0x2589))), "_.-=*#"


class Display(Protocol):
    """Display of a run; a context manager."""

    def update(self, step: int, values: Values) -> None:
        """Show values after `step` steps."""

    def note(self, text: str) -> None:
        """Show a sentence that stays (a checkpoint saved, a step skipped)."""

    def doing(self, what: str) -> None:
        """Show what takes long now (compiling, evaluating), until it is called again; "" ends it.
        """

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...


def open_display(
    name: str, steps: int, plain_every: int = 10, console: Console | None = None
) -> Display:
    """Choose the live panel for a terminal and plain lines for anything else."""
    console = console or Console()
    if console.is_terminal and not console.is_dumb_terminal:
        return LiveDisplay(name, steps, console)
    return PlainDisplay(steps, plain_every, console)


def header(values: Values, title: str = "dsjax", console: Console | None = None) -> None:
    """Print what a run is and every choice made for its platform, one a line."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in values.items():
        table.add_row(Text(name), Text(str(value), style=STYLES.get(name, "")))
    console = console or Console()
    console.print(Text(title, style="bold"))
    console.print(table)


class PlainDisplay:
    """One line every n steps, with every evaluation, and after the last step."""

    def __init__(self, steps: int, every: int, console: Console) -> None:
        self._steps, self._every, self._console = steps, max(every, 1), console
        self._new: dict[str, Any] = {}
        self._said: set[str] = set()

    def update(self, step: int, values: Values) -> None:
        """Print a line when one is due."""
        self._new |= values
        if step % self._every and step != self._steps and "bits_per_byte" not in values:
            return
        width = len(str(self._steps))
        cells = [f"{label} {text}" for label, text, _ in _cells(self._new)]
        self._say("  ".join([f"step {step:{width}}/{self._steps}", *cells]))
        self._new = {}

    def note(self, text: str) -> None:
        """Print a sentence on a line of its own."""
        self._say(text)

    def doing(self, what: str) -> None:
        """Print what takes long on a line of its own, the first time."""
        if what and what not in self._said:
            self._say(f"{what} ...")
        self._said.add(what)

    def _say(self, line: str) -> None:
        self._console.file.write(printable(line) + "\n")
        self._console.file.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class LiveDisplay:
    """A panel that is redrawn in place a few times a second, by a thread: it moves while the host
    waits for a compiler.
    """

    def __init__(self, name: str, steps: int, console: Console, redraw_s: float = 0.15) -> None:
        self._name, self._steps, self._console, self._redraw_s = name, steps, console, redraw_s
        self._step, self._values = 0, dict[str, Any]()
        self._losses = History()
        self._began = self._drawn = time.monotonic()
        self._doing: tuple[str, float] | None = None  # what, and since when
        self._live = Live(console=console, get_renderable=self.render, refresh_per_second=5,
                          vertical_overflow="visible")

    def update(self, step: int, values: Values) -> None:
        """Take values in, and redraw when the last drawing is old enough."""
        self._step = step
        self._values = {**self._values, **values}  # the thread may be reading the former
        drawn = values.get("loss", values.get("reward", math.nan))
        if math.isfinite(drawn):
            self._losses.add(float(drawn))
        if time.monotonic() - self._drawn >= self._redraw_s:
            self._redraw()

    def note(self, text: str) -> None:
        """Print a sentence above the panel."""
        self._console.print(Text(text))

    def doing(self, what: str) -> None:
        """Show what takes long, for how long, on a line of the panel that moves."""
        if what or self._doing is not None:
            self._doing = (what, time.monotonic()) if what else None
            self._redraw()

    def _redraw(self) -> None:
        self._live.refresh()
        self._drawn = time.monotonic()

    def render(self) -> RenderableType:
        """Lay the panel out for the console's present width."""
        inner = self._console.width - 4
        parts: list[RenderableType] = []
        values, points, now = self._values, list(self._losses.points), time.monotonic()
        if values:
            parts.append(_grid(values, max(inner // CELL, 1)))
        if len(points) > 1:
            parts.append(_curve(points, inner, self._console.options.ascii_only))
        if (doing := self._doing) is not None:
            what, since = doing
            turn = TURN[int(5 * (now - since)) % len(TURN)]
            parts.append(Text(f"{turn} {what} {clock(now - since)}", style="cyan", no_wrap=True,
                              overflow="ellipsis"))
        left = values.get("eta")
        parts.append(_progress(self._step, self._steps, now - self._began, left))
        title = Text(self._name, style="bold")
        return Panel(Group(*parts), title=title, title_align="left", border_style="dim")

    def __enter__(self) -> Self:
        self._live.start()
        self._redraw()
        return self

    def __exit__(self, *_: object) -> None:
        self._doing = None
        self._redraw()
        self._live.stop()


class History:
    """A whole series in at most `size` means of equally many values."""

    def __init__(self, size: int = 1024) -> None:
        self.points: list[float] = []
        self._size, self._stride, self._part = size, 1, list[float]()

    def add(self, value: float) -> None:
        """Append a value; halve the resolution when the series is full."""
        self._part.append(value)
        if len(self._part) == self._stride:
            self.points.append(sum(self._part) / self._stride)
            self._part = []
        if len(self.points) == self._size:
            self.points = shorten(self.points, self._size // 2)
            self._stride *= 2


def clock(seconds: float | None) -> str:
    """Duration as 0:07, 12:05, 3:07:12 or 2d 03:07."""
    if seconds is None or not math.isfinite(seconds):
        return "?"
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    days, h = divmod(hours, 24)
    if days:
        return f"{days}d {h:02}:{m:02}"
    return f"{hours}:{m:02}:{s:02}" if hours else f"{m}:{s:02}"


def shorten(series: list[float], size: int) -> list[float]:
    """Means of `size` equal stretches of a series; the series itself when it is no longer."""
    if len(series) <= size:
        return series
    ends = [round(i * len(series) / size) for i in range(size + 1)]
    return [sum(series[a:b]) / (b - a) for a, b in pairwise(ends)]


def sparkline(series: list[float], width: int, bars: str = BARS) -> str:
    """Series as a row of bars between its least and its greatest value."""
    points = shorten(series, width)
    low, high = min(points), max(points)
    scale = (len(bars) - 1) / (high - low) if high > low else 0
    return "".join(bars[round((p - low) * scale)] for p in points)


def _cells(values: Values) -> list[tuple[str, str, str]]:
    """Label, text and style of each value: known names in their order, then the others."""
    known = [name for name in FIELDS if name in values]
    others = [name for name in values if name not in FIELDS]
    cells = []
    for name in known + others:
        label, form = FIELDS.get(name, (name.replace("_", " "), "{:.4g}".format))
        value = values[name]
        is_number = isinstance(value, int | float) or getattr(value, "ndim", 1) == 0
        text = form(float(value)) if is_number else str(value)
        alarm = ALARMS.get(name, "") if is_number and value > 0 else ""
        cells.append((label, text, alarm or "bold"))
    return cells


def _grid(values: Values, columns: int) -> Table:
    """Cells in rows of `columns`; the time left has its place beside the bar instead."""
    cells = _cells({name: v for name, v in values.items() if name != "eta"})
    grid = Table.grid(expand=True)
    for _ in range(columns):
        grid.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
    texts = [
        Text.assemble((f"{label:{LABEL}}" if columns > 1 else f"{label}  ", "dim"), (text, style))
        for label, text, style in cells
    ]
    for i in range(0, len(texts), columns):
        grid.add_row(*texts[i : i + columns])
    return grid


def _curve(losses: list[float], width: int, is_ascii: bool) -> Text:
    """First loss, a sparkline of its history, and the latest, in one row."""
    points = shorten(losses, max(width - 16, 8))
    first, last = f"{points[0]:.3f} ", f" {points[-1]:.3f}"
    history = sparkline(points, len(points), ASCII_BARS if is_ascii else BARS)
    return Text.assemble((first, "dim"), (history, "cyan"), (last, "dim"))


def _progress(step: int, steps: int, gone: float, left: float | None) -> Table:
    """Bar, steps done, time gone and time left."""
    row = Table.grid(expand=True, padding=(0, 1))
    row.add_column(ratio=1)
    row.add_column(no_wrap=True)
    text = f"{step}/{steps}  {clock(gone)} gone"
    if left is not None:
        text += f", {clock(left)} left"
    row.add_row(ProgressBar(total=max(steps, 1), completed=step), Text(text))
    return row
