"""The table and the figure of the training runs, from their records alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.common import plot
from experiments.common.arms import relative_difference, smooth
from experiments.common.command import Asked

WARMUP = 100  # steps whose differences are not judged: the loss falls too fast there
EVALUATED = 500  # steps between evaluations on all held-out text
LIMIT = 0.0025  # V3 report, sec. 3.3: relative loss error consistently below 0.25 %

Record = dict[str, Any]
Group = tuple[str, int]
"""A config and the tokens of a batch: arms of one group are compared with each other."""


def group(r: Record) -> Group:
    """The group of arms that a record belongs to."""
    train = r["config"]["train"]
    return r["config"]["name"], train["batch_size"] * train["seq_len"]


def pairs(found: Sequence[Record], of_group: Group, arm: str) -> list[tuple[Record, Record]]:
    """The records of an arm, each with the bf16 run of its seed."""
    def of(name: str) -> dict[int, Record]:
        return {r["seeds"][0]: r for r in found if (group(r), r["arm"]) == (of_group, name)}

    mine, bases = of(arm), of("bf16")
    return [(mine[seed], bases[seed]) for seed in sorted(mine.keys() & bases.keys())]


def differences(both: Sequence[tuple[Record, Record]]) -> np.ndarray:
    """Relative loss differences [seeds, steps] after the warm-up, over an arm's own length."""
    steps = len(both[0][0]["next_token"])
    return np.stack([relative_difference(r["next_token"], base["next_token"][:steps])[WARMUP:]
                     for r, base in both])


def row(both: Sequence[tuple[Record, Record]]) -> list[str]:
    """Config, arm and how it compares with bf16: mean of seeds, and the worst."""
    first, d = both[0][0], differences(both)
    steps = str(len(first["next_token"]))
    heldout = np.array([[one["heldout_nats"][steps] for one in pair] for pair in both])
    moved = (heldout[:, 0] / heldout[:, 1] - 1).mean()
    name, tokens = group(first)
    return [name, f"{tokens:,}", first["claim"].split(": ", 1)[1], steps, str(len(both)),
            f"{heldout[:, 0].mean():.4f}", f"{100 * moved:+.3f} %", f"{100 * d.mean():+.3f} %",
            f"{100 * np.sqrt((d**2).mean()):.3f} %", f"{100 * np.abs(d).max():.3f} %",
            f"{100 * np.abs(d.mean(axis=0)).max():.3f} %",
            f"{100 * (np.abs(d) < LIMIT).mean():.2f} %"]


COLUMNS = ["config", "tokens a batch", "arm", "steps", "seeds", "held-out nats", "against bf16",
           "training loss, mean", "rms", "largest", "largest, seeds averaged",
           "steps below 0.25 %"]


def names(found: Sequence[Record], of_group: Group) -> list[str]:
    """Arms of a group but bf16, in the order they were trained."""
    mine = [r["arm"] for r in found if group(r) == of_group and r["arm"] != "bf16"]
    return list(dict.fromkeys(mine))


def write(asked: Asked, found: Sequence[Record], missing: Sequence[str]) -> None:
    """Write records/training.json and figure.svg; the figure alone, of what is there."""
    groups = list(dict.fromkeys(map(group, found)))
    if not asked.is_redraw:
        record(asked, found, groups)
    draw(found, groups, asked.folder / "figure.svg")
    if missing:
        print(f"not drawn, as there are no records: {', '.join(missing)}")


def record(asked: Asked, found: Sequence[Record], groups: Sequence[Group]) -> None:
    """Write records/training.json."""
    rows = [row(both) for one in groups for arm in names(found, one)
            if (both := pairs(found, one, arm))]
    seeds = sorted({seed for r in found for seed in r["seeds"]})
    commits = sorted({r["commit"] for r in found})
    asked.write("training", "FP8 training follows bfloat16 training within 0.25 % (EMA 0.9)",
                COLUMNS, rows, seeds=seeds, arms_commits=commits,
                arms_clean=all(r["is_clean"] for r in found))


def draw(found: Sequence[Record], groups: Sequence[Group], path: Path) -> None:
    """Loss curves of one seed, then a panel a group of what differs from bf16; names of arms."""
    with plot.figure(path, width=plot.PAGE, height=3.0, panels=1 + len(groups), columns=2) as axes:
        curves, *panels = np.atleast_1d(axes).flat
        for color, name in zip(plot.COLORS, ("bf16", "fp8", "fp32")):
            for one, style in zip(groups[:2], ("-", "--")):
                for r, _ in pairs(found, one, name)[:1]:
                    curves.plot(smooth(r["next_token"]), style, color=color, lw=0.9,
                                label=f"{one[0]}, {name}")
        curves.set(xlabel="step", ylabel="loss, nats a token (EMA 0.9)",
                   title=title(found, groups[:2]))
        curves.legend(frameon=False)
        for ax, one in zip(panels, groups):
            panel(ax, found, one)
        lines = {line.get_label(): line for ax in panels for line in ax.lines
                 if line.get_label()[0] != "_"}
        last = panels[-1].figure.axes[-1]
        where = {"loc": "center"} if not last.axison else {"loc": "lower left", "ncols": 2}
        legend = last.legend(lines.values(), lines.keys(), frameon=False, **where)
        for line in legend.get_lines():
            line.set(linewidth=2, alpha=1)


def panel(ax: Any, found: Sequence[Record], of_group: Group) -> None:
    """Differences from bf16 by step, seeds as thin lines; an arm has one color in all panels."""
    colors = dict(zip(dict.fromkeys(r["arm"] for r in found), plot.COLORS))
    for name in names(found, of_group):
        color = colors[name]
        for i, d in enumerate(differences(pairs(found, of_group, name))):
            ax.plot(np.arange(WARMUP, WARMUP + len(d)), 100 * d, color=color, lw=0.6, alpha=0.8,
                    label=None if i else name)
    for sign in (-1, 1):
        ax.axhline(sign * 100 * LIMIT, color=plot.INK, lw=0.8, ls=":")
    ax.set(xlabel="step", ylabel="difference from bf16, %", ylim=(-0.55, 0.55),
           title=f"{of_group[0]}, {of_group[1]:,} tokens a batch")


def title(found: Sequence[Record], groups: Sequence[Group]) -> str:
    """The finding: how far FP8's loss is from bf16's at most, of any seed."""
    d = {one: np.abs(differences(both)).max() for one in groups
         if (both := pairs(found, one, "fp8"))}
    return "FP8: " + ", ".join(f"{name} {100 * v:.2f} %" for (name, _), v in d.items())
