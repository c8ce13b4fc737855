"""Tables and verdicts of the records of runs; the rules stand in the README, written before."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

COLUMNS = ("seed", "steps of the base", "base greedy", "base sampled", "base works",
           "working right", "guesses right", "base length", "RL greedy", "RL sampled", "RL works",
           "RL length", "live groups", "minutes", "CPU minutes", "others")
LOW, HIGH, LONGER, CLIMB = 0.45, 0.95, 1.5, 0.1
"""Sampled accuracy of a base at most and after RL at least, growth of length at least; and the
rise of sampled accuracy from which on a control climbs."""
WORKS, RIGHT = 0.05, 0.5
"""Outputs of a control's base that work at least, and are right of them at most."""


def values(made: dict[str, Any]) -> list[float]:
    """Numbers of a run in the order of the columns.

    Sampled accuracy is over all samples of pass@k, as one sample of each question says less. Live
    groups: the mean share of a rollout's questions whose outputs do not all earn the same. Minutes
    are without pass@k, which the study alone asks, those of the CPU with it; others: the share of
    the processors' time that other programs had meanwhile.
    """
    base, final = made["exams"][0], made["exams"][-1]
    before, after = (one["answer_pass_1"] for one in (made["passes"][0], made["passes"][-1]))
    flat = made["curves"]["constant_groups"]
    wall = sum(one["wall"] for one in made["clock"])
    busy = sum(one["others"] for one in made["clock"]) / wall / made["cores"]
    return [made["seeds"][0], made["base_steps"], base["greedy"], before, base["long"],
            _number(base["right_long"]), _number(base["right_short"]), base["length"],
            final["greedy"], after, final["long"], final["length"], 1 - sum(flat) / len(flat),
            (wall - made["seconds_of_passes"]) / 60,
            sum(one["cpu"] for one in made["clock"]) / 60, busy]


def rows(runs: Sequence[dict[str, Any]]) -> list[list[Any]]:
    """Rows of a table: each seed, then the least and the most of each column."""
    found = [values(made) for made in runs]
    ends = [[name, *(end(column) for column in list(zip(*found, strict=True))[1:])]
            for name, end in (("least", min), ("most", max))]
    return [_shown(row) for row in [*found, *ends]]


def pass_columns(k: Sequence[int], votes: int) -> tuple[str, ...]:
    """Columns of the table of pass@k: of right answers, of worked solutions, and of majorities."""
    return ("seed", "policy", *(f"answer pass@{one}" for one in k),
            *(f"worked pass@{one}" for one in k), f"cons@{votes}")


def pass_rows(runs: Sequence[dict[str, Any]], k: Sequence[int], votes: int) -> list[list[Any]]:
    """Rows of that table: before and after RL for each seed, then the least of the three of each.
    """
    names = [*(f"answer_pass_{one}" for one in k), *(f"worked_pass_{one}" for one in k),
             f"cons_{votes}"]
    found = {policy: [[made["passes"][at][name] for name in names] for made in runs]
             for policy, at in (("base", 0), ("after RL", -1))}
    made = [[run["seeds"][0], policy, *map(_share, own[i])] for i, run in enumerate(runs)
            for policy, own in found.items()]
    return made + [["least", policy, *map(_share, map(min, zip(*own, strict=True)))]
                   for policy, own in found.items()]


def verdict(runs: Sequence[dict[str, Any]]) -> str:
    """Verdict on accuracy and length that climb together."""
    found = [_named(made) for made in runs]
    if all(one["base sampled"] <= LOW and one["RL sampled"] >= HIGH
           and grown(made) >= LONGER for one, made in zip(found, runs, strict=True)):
        return "supports"
    if all(one["RL sampled"] < one["base sampled"] + CLIMB or grown(made) < LONGER
           for one, made in zip(found, runs, strict=True)):
        return "contradicts"
    return "inconclusive"


def verdict_of_control(runs: Sequence[dict[str, Any]]) -> str:
    """Verdict on length that climbs only where working pays."""
    found = [_named(made) for made in runs]
    if any(one["base works"] < WORKS or one["working right"] > RIGHT for one in found):
        return "cannot speak"
    longer = [grown(made) >= LONGER for made in runs]
    climbs = [one["RL sampled"] >= one["base sampled"] + CLIMB for one in found]
    if not any(longer) and not any(climbs):
        return "supports"
    return "contradicts" if sum(longer) > 1 else "inconclusive"


def grown(made: dict[str, Any]) -> float:
    """Factor by which the outputs of a run have grown."""
    return made["exams"][-1]["length"] / made["exams"][0]["length"]


def _named(made: dict[str, Any]) -> dict[str, float]:
    return dict(zip(COLUMNS, values(made), strict=True))


def _number(value: float | None) -> float:
    """A share, NaN where there was nothing to take it of."""
    return math.nan if value is None else value


def _share(value: float) -> str:
    return f"{value:.3f}"


def _shown(row: Sequence[Any]) -> list[Any]:
    """A row as a page shows it: lengths and minutes to a tenth, shares to a thousandth."""
    tenths = {COLUMNS.index(name) for name in ("base length", "RL length", "minutes",
                                                  "CPU minutes")}
    return [one if i < 2 else f"{one:.1f}" if i in tenths else _share(one)
            for i, one in enumerate(row)]
