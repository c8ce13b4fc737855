"""Needles by length and depth, before and after the phases, as a heat map.

Two ways of asking: the likelihood of the code, and what the model writes through the engine.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dsjax.evaluate.likelihood import Scorer
from dsjax.evaluate.long import heat
from dsjax.evaluate.long.heat import Cell
from dsjax.evaluate.long.needles import Grid, items
from dsjax.infer.engine.device import Device, Setting
from dsjax.infer.engine.engine import Engine
from experiments.common import plot
from experiments.common.command import Asked
from experiments.long_context import phases

GRID = Grid(lengths=(128, 512, 1024, 2048, 4096), depths=(0.0, 0.25, 0.5, 0.75, 1.0), each=4)
QUICK = Grid(lengths=(128, 256), depths=(0.0, 1.0), each=2)
WRITTEN = 2
"""Items of a cell that are written, too: the first ones."""
COLUMNS = ("model", "asked", *(f"{length:,}" for length in GRID.lengths))
FIGURE = "needles.svg"


def main(asked: Asked) -> None:
    """Hide, ask, write the record and draw it."""
    path = asked.records / "needles.json"
    if not asked.is_redraw:
        grid = QUICK if asked.is_quick else GRID
        found = {}
        for name, model, _ in phases.arms(phases.trained(asked.runs, asked.is_quick)):
            hidden = list(items(grid, phases.heldout(model), model.tokenizer))
            longest = max(grid.lengths)
            scores = Scorer(model, context=longest)([item.text for item in hidden])
            some = [i for i in range(len(hidden)) if _number(i, grid) < WRITTEN]
            engine = Engine(Device(model, Setting(slots=2, max_len=longest, chunk=256)))
            wrote = heat.write([hidden[i] for i in some], engine)
            found[name] = (heat.cells(hidden, scores), heat.cells(
                [hidden[i] for i in some], [scores[i] for i in some], wrote))
            for row in table({name: found[name]}, grid.lengths):
                print(*row, flush=True)
        asked.write("needles", "codes found in plays of so many tokens, mean over depths; a guess "
                    "is right once in 36 times", COLUMNS if not asked.is_quick else
                    (*COLUMNS[:2], *map(str, grid.lengths)), table(found, grid.lengths),
                    items=grid.each, items_written=min(WRITTEN, grid.each),
                    cells={name: plain(both[0]) for name, both in found.items()},
                    written={name: plain(both[1]) for name, both in found.items()})
    draw(json.loads(path.read_text())["cells"], asked.folder / FIGURE)


def plain(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """Cells for a record, without numbers that are none."""
    return [{name: round(value, 4) for name, value in vars(cell).items() if value == value}
            for cell in cells]


def _number(i: int, grid: Grid) -> int:
    """Number of an item within its cell."""
    return i // len(grid.depths) % grid.each


def table(found: Mapping[str, tuple[Sequence[Cell], Sequence[Cell]]],
          lengths: Sequence[int]) -> list[list[Any]]:
    """Rows of a model: shares of codes that were likeliest, shares written, and nats a token."""
    rows: list[list[Any]] = []
    for name, (cells, written) in found.items():
        asks = (("likeliest", cells, "likeliest", "{:.0%}"), ("written", written, "written",
                "{:.0%}"), ("nats a token", cells, "nats", "{:.2f}"))
        for said, of, field, form in asks:
            by_length = ([getattr(c, field) for c in of if c.length == n] for n in lengths)
            rows.append([name, said, *(form.format(sum(v) / len(v)) for v in by_length)])
    return rows


def draw(cells: Mapping[str, Sequence[Mapping[str, Any]]], path: Path) -> None:
    """Draw a panel for each model: depth down, length across, the share that was likeliest."""
    lengths = sorted({cell["length"] for own in cells.values() for cell in own})
    depths = sorted({cell["depth"] for own in cells.values() for cell in own})
    with plot.figure(path, width=8.6, height=2.6, panels=len(cells), columns=2) as axes:
        for ax, (name, own) in zip(axes.flat, cells.items(), strict=True):
            share = {(cell["length"], cell["depth"]): cell["likeliest"] for cell in own}
            grid = [[share[length, depth] for length in lengths] for depth in depths]
            ax.imshow(grid, vmin=0, vmax=1, cmap="RdYlGn", aspect="auto")
            for y, row in enumerate(grid):
                for x, value in enumerate(row):
                    ax.text(x, y, f"{value:.0%}", ha="center", va="center", fontsize=7)
            ax.set_xticks(range(len(lengths)), [f"{length:,}" for length in lengths])
            ax.set_yticks(range(len(depths)), [f"{depth:.0%}" for depth in depths])
            ax.set_title(f"trained on {name}" if name[0] != "a" else name)
            ax.set_xlabel("tokens")
            ax.set_ylabel("depth of the needle")
            ax.grid(False)
