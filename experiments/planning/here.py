"""Steps of `dsjax bench train` beside what `dsjax plan --here` says of them, in one process."""

from __future__ import annotations

from typing import Any

from dsjax.cli import bench
from dsjax.cli.bench import Train
from dsjax.cli.benches.shapes import shape_run
from dsjax.plan import here
from dsjax.plan.cost.step import estimate
from experiments.common.command import Asked

ARMS = {
    "tiny, 8 x 256": Train("tiny", "float32", 3),
    "tiny, 2 x 256": Train("tiny", "float32", 3, batch_size=2),
}
COLUMNS = ["step", "GFLOP/s of products, measured", "GB/s, measured", "ms, predicted",
           "ms, median", "error"]


def main(asked: Asked) -> None:
    """Measure rates before and after each arm's steps, and write both."""
    rows = []
    for name, arm in list(ARMS.items())[: 1 if asked.is_quick else None]:
        rows.append(_arm(name, arm))
    asked.write("here", "a training step of this machine, predicted from rates measured beside it",
                COLUMNS, rows)


def _arm(name: str, arm: Train) -> list[Any]:
    before = here.measure()
    took = bench.train(arm)["ms_median"]
    after = here.measure()
    run = shape_run(arm)
    said = 1e3 * sum(estimate(run, site, here.HERE).step for site in (before, after)) / 2
    chip = after.chip
    assert chip.wide is not None, "measured"
    products = (before.chip.wide or 0.0) + chip.wide
    return [name, f"{products / 2 * here.efficiency.PRODUCT.value / 1e9:.0f}",
            f"{(before.bandwidth + after.bandwidth) / 2 * here.efficiency.MEMORY.value / 1e9:.1f}",
            f"{said:.0f}", f"{took:.0f}", f"{said / took - 1:+.0%}"]
