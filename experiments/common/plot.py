"""One look for every figure: dsjax's own (dsjax/train/plots.py), saved as SVG with stable bytes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dsjax.train.plots import BLUE, GRAY, INK, RUST, STYLE

COLORS = (BLUE, RUST, GRAY, INK, "#5b8c2a", "#7b4fa3", "#c08a00", "#1f8a8a")


@contextmanager
def figure(path: Path, width: float = 7.0, height: float = 3.6, panels: int = 1) -> Iterator[Any]:
    """Axes to draw on (a row of them if `panels` > 1); written to `path` at the end."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(STYLE | {"svg.hashsalt": "dsjax", "svg.fonttype": "none"}):
        page = Figure(figsize=(width, height), layout="constrained")
        yield page.subplots(1, panels)
        path.parent.mkdir(parents=True, exist_ok=True)
        page.savefig(path, metadata={"Date": None})
