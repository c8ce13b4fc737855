"""From a step to a whole run: tokens, days, chip-hours and dollars."""

from __future__ import annotations

from dataclasses import dataclass

from dsjax.config.run import RunConfig
from dsjax.config.schedule import whole_steps
from dsjax.data import curriculum
from dsjax.errors import UserError
from dsjax.plan.cost.site import Site
from dsjax.plan.cost.step import Estimate

PRICES = {"h800": (2.0, "V3 report, Table 1: assumed rent, December 2024")}
"""Dollars a chip-hour with their source; other prices are the reader's (--dollars)."""


@dataclass(frozen=True)
class Bill:
    """A run of so many tokens."""

    tokens: float
    days: float
    chip_hours: float
    dollars: float | None
    price: str
    """The source of the price."""


def bill(run: RunConfig, site: Site, made: Estimate, tokens: float | None = None,
         dollars: float | None = None) -> Bill:
    """Price a run at the rate of its step; tokens: by default all that the config trains on."""
    total = tokens_of(run) if tokens is None else tokens
    for flag, value in (("--tokens", tokens), ("--dollars", dollars)):
        if value is not None and not 0 < value < 1e18:
            raise UserError(f"{flag} {value} is not a number above 0; give one, as 14.8e12 or 2")
    seconds = total / made.tokens * made.step
    hours = seconds / 3600 * site.chips
    price, source = PRICES.get(site.kind, (None, ""))
    if dollars is not None:
        price, source = dollars, "--dollars"
    return Bill(total, seconds / 86400, hours, None if price is None else hours * price, source)


def tokens_of(run: RunConfig) -> float:
    """Tokens of all steps of a run, its ramp of rows included."""
    train = run.train
    ramp = 0
    if train.batch_size_start is not None:
        ramp = min(whole_steps(train.batch_size_ramp_steps, train.steps), train.steps)
    rows = sum(curriculum.rows_of(train, done) for done in range(ramp))
    return float((rows + (train.steps - ramp) * train.batch_size) * train.seq_len)
