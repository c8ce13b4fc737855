"""Predictions beside the published runs; which of them fitted anything is said by every row."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from dsjax.plan.cost import efficiency, room, site, step
from dsjax.plan.evidence.published import ROWS, Published


@dataclass(frozen=True)
class Row:
    """A published run beside its prediction, in tokens/s of a chip."""

    published: Published
    predicted: float
    is_fitted: bool

    @property
    def error(self) -> float:
        """Prediction over the published figure, less one."""
        return self.predicted / self.published.tokens_per_chip - 1


def predict(one: Published) -> step.Estimate:
    """Predict a published run's step."""
    return step.estimate(one.run(), site.parse(one.site), efficiency.STACKS[one.stack], one.chunks)


def rows() -> list[Row]:
    """All published runs, predicted."""
    fitted = {stack.fitted_to for stack in efficiency.STACKS.values()}
    return [Row(one, tokens_per_chip(one), one.name in fitted) for one in ROWS]


def tokens_per_chip(one: Published) -> float:
    """Predicted tokens/s of a chip."""
    found = predict(one)
    return found.tokens / found.step / site.parse(one.site).chips


def gib(one: Published) -> float:
    """Predicted GiB of a device that runs a published stack.

    Beside what ours keeps: logits of whole rows in bfloat16, as losses of other stacks take them,
    and each token as it was laid out for its experts, which ours lays out again.
    """
    run = one.run()
    found = room.room(run, site.parse(one.site), one.chunks)
    tokens = run.train.batch_size * run.train.seq_len // (
        run.train.microbatches * run.parallel.row_devices)
    kept = 2 * tokens * run.model.vocab - found.logits
    if run.model.moe is not None and run.parallel.pipe == 1 and run.machine.remat == "none":
        kept += (2 * tokens * run.model.moe_layers * run.model.moe.experts_per_token
                 * run.model.d_model)
    return (found.total + kept) / 2**30


def median_error(made: list[Row]) -> float:
    """Median of the sizes of errors over rows that fitted nothing."""
    return statistics.median(abs(row.error) for row in made if not row.is_fitted)


def worst(made: list[Row]) -> Row:
    """The row that fitted nothing whose error is largest."""
    return max((row for row in made if not row.is_fitted), key=lambda row: abs(row.error))
