"""Published runs beside what is predicted of them, and the layouts of V3 on 2,048 H800."""

from __future__ import annotations

from dsjax.config.load import load
from dsjax.config.run import with_fields
from dsjax.plan.cost import bill, search, site
from dsjax.plan.cost.efficiency import STACKS
from dsjax.plan.evidence import calibration
from experiments.common.command import Asked

SHOWN = 5
"""Layouts of the record."""


def main(asked: Asked) -> None:
    """Predict, search and write both records."""
    made = calibration.rows()
    rows = [[row.published.name, f"{row.published.tokens_per_chip:,.0f}", f"{row.predicted:,.0f}",
             f"{row.error:+.1%}", *_gib(row.published), "yes" if row.is_fitted else ""]
            for row in made]
    worst = calibration.worst(made)
    rows.append([f"median size of {sum(not row.is_fitted for row in made)} errors, nothing fitted",
                 "", "", f"{calibration.median_error(made):.1%}", "", "", ""])
    rows.append([f"worst: {worst.published.name}", "", "", f"{worst.error:+.1%}", "", "", ""])
    asked.write("published", "tokens/s of a chip, published and predicted",
                ["run", "tokens/s published", "predicted", "error", "GiB published",
                 "predicted GiB", "fitted a factor"], rows)
    if not asked.is_quick:
        asked.write("v3", "the fastest layouts of V3 on 2,048 H800",
                    ["layout", "microbatches", "remat", "s a step", "GB", "thousand H800-hours"],
                    _layouts())


def _gib(one: calibration.Published) -> list[str]:
    return ["", ""] if one.gib is None else [f"{one.gib:.1f}", f"{calibration.gib(one):.1f}"]


def _layouts() -> list[list[str]]:
    """The fastest, and V3's own with recomputation as the report has it, at the end."""
    own, where = load("deepseek_v3"), site.parse("h800:2048")
    run = with_fields(own, train={"batch_size_start": None, "batch_size_ramp_steps": 0})
    found = search.search(run, where, STACKS["deepseek"]).found
    v3 = next(one for one in found if one.run.machine.remat == "v3"
              and one.run.parallel.schedule == "dualpipe"
              and (one.run.parallel.pipe, one.run.parallel.expert) == (16, 64))
    return [[f"{at}. {one.run.parallel}", str(one.run.train.microbatches), one.run.machine.remat,
             f"{one.estimate.step:.2f}", f"{one.room.total / 1e9:.1f}",
             f"{bill.bill(own, where, one.estimate).chip_hours / 1e3:,.0f}"]
            for at, one in [*enumerate(found[:SHOWN], 1), (found.index(v3) + 1, v3)]]
