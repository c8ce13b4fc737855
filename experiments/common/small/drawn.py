"""Figures that several studies draw alike: bars of arms with their seeds, and curves by tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.common.plot import COLORS
from experiments.common.small.answer import Found, mean, values


def dots(axes: Any, found: Found, names: Sequence[str], what: str, unit: str) -> None:
    """A row for each arm: its seeds as dots, their mean as a bar of its own width."""
    for at, name in enumerate(names):
        seeds = values(found[name], what)
        axes.plot(seeds, [at] * len(seeds), "o", ms=4, color=COLORS[0], alpha=0.6)
        axes.plot([mean(found[name], what)] * 2, [at - 0.3, at + 0.3], color=COLORS[1], lw=2)
    axes.set_yticks(range(len(names)), list(names))
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.locator_params(axis="x", nbins=5)
    axes.set_xlabel(unit)


def curves(axes: Any, found: Found, names: Sequence[str]) -> None:
    """Held-out loss by tokens read, a line for each arm, its seeds as a band."""
    for color, name in zip(COLORS, names, strict=False):
        runs = found[name]["of_seeds"]
        steps = [int(step) for step in runs[0]["curve"]]
        train = found[name]["config"]["train"]
        tokens = np.array(steps) * train["batch_size"] * train["seq_len"] / 1000
        nats = np.array([list(run["curve"].values()) for run in runs])
        axes.plot(tokens, nats.mean(0), color=color, label=name)
        axes.fill_between(tokens, nats.min(0), nats.max(0), color=color, alpha=0.2, lw=0)
    axes.set_xlabel("thousand tokens read")
    axes.set_ylabel("held-out nats a token")
    axes.legend()
