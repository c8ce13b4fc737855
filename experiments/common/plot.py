"""One look for every figure: dsjax's own (dsjax/train/plots.py), saved as SVG with stable bytes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dsjax.report.plots import BLUE, GRAY, INK, RUST, STYLE

COLORS = (BLUE, RUST, GRAY, INK, "#5b8c2a", "#7b4fa3", "#c08a00", "#1f8a8a")


PAGE = 8.6
"""Inches of a page that shows a figure as it is: 830 pixels. A wider one would be shrunk there."""


@contextmanager
def figure(path: Path, width: float = 7.0, height: float = 3.6, panels: int = 1,
           columns: int | None = None) -> Iterator[Any]:
    """Axes to draw on, written to `path` at the end; rows of `columns` if there are several.

    height: of a row.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(STYLE | {"svg.hashsalt": "dsjax", "svg.fonttype": "none"}):
        columns = columns or panels
        rows = -(-panels // columns)
        page = Figure(figsize=(min(width, PAGE), height * rows), layout="constrained")
        axes = page.subplots(rows, columns)
        for unused in axes.flat[panels:] if rows * columns > 1 else ():
            unused.set_axis_off()
        yield axes
        path.parent.mkdir(parents=True, exist_ok=True)
        page.savefig(path, metadata={"Date": None})
