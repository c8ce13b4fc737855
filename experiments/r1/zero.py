"""R1-Zero from nothing: base, then GRPO on the answer, by the command that a user types."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from experiments.common import plot
from experiments.common.command import Asked
from experiments.r1 import tables, teach

K, VOTES = (1, 8, 64), 16
QUICK_K, QUICK_VOTES = (1, 2, 4), 4


def main(asked: Asked) -> None:
    """Run each seed, write the tables and draw."""
    seeds = teach.seeds(asked)
    k, votes = (QUICK_K, QUICK_VOTES) if asked.is_quick else (K, VOTES)
    if asked.is_redraw:
        runs = kept(asked, "zero", seeds)
    else:
        runs = [teach.teach(asked, "zero", seed, max(K)) for seed in seeds]
        asked.write("zero", "held-out accuracy and mean length before and after RL on the answer",
                    tables.COLUMNS, tables.rows(runs), verdict=tables.verdict(runs))
        asked.write("passes", "pass@k over held-out questions: of right answers, of solutions that "
                    "are worked to the character, and the answer that most samples give",
                    tables.pass_columns(k, votes), tables.pass_rows(runs, k, votes))
    draw(asked, runs)


def kept(asked: Asked, arm: str, seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Records of runs that are there."""
    paths = (asked.records / f"{arm}-seed{seed}.json" for seed in seeds)
    return [json.loads(path.read_text()) for path in paths]


def draw(asked: Asked, runs: Sequence[dict[str, Any]]) -> None:
    """Draw the plots of the R1 report, a line for each seed."""
    with plot.figure(asked.folder / "zero.svg", width=8.6, height=2.5, panels=6,
                     columns=3) as axes:
        reward, length, entropy, accuracy, answers, worked = axes.flat
        for made in runs:
            for ax, name in ((reward, "reward"), (length, "length"), (entropy, "entropy")):
                curve(ax, made["curves"][name], plot.COLORS[0])
            steps = [exam["step"] for exam in made["exams"]]
            for name, color in (("greedy", plot.COLORS[3]), ("sampled", plot.COLORS[0]),
                                ("long", plot.COLORS[2])):
                accuracy.plot(steps, [exam[name] for exam in made["exams"]], color=color, lw=1)
            for at, color in ((0, plot.COLORS[2]), (-1, plot.COLORS[0])):
                passes(answers, made["passes"][at], "answer", color)
                passes(worked, made["passes"][at], "worked", color)
        titles = ("Reward", "Tokens of an output", "Entropy, nats a token", "Held out",
                  "pass@k of answers", "pass@k of worked solutions")
        for ax, title in zip(axes.flat, titles, strict=True):
            ax.set_title(title)
        for ax in (reward, length, entropy, accuracy):
            ax.set_xlabel("step")
        label(accuracy, {"greedy": plot.COLORS[3], "sampled": plot.COLORS[0],
                         "works": plot.COLORS[2]})
        label(worked, {"base": plot.COLORS[2], "after RL": plot.COLORS[0]})
        for ax in (answers, worked):
            ax.set_xlabel("k")
        for ax in (reward, accuracy, answers, worked):
            ax.set_ylim(0, 1.04)


def label(ax: Any, colors: dict[str, str]) -> None:
    """Say what colors mean."""
    for name, color in colors.items():
        ax.plot([], [], color=color, label=name)
    ax.legend(loc="lower right")


def curve(ax: Any, values: Sequence[float], color: str) -> None:
    """Draw numbers of steps, the first of which is 1."""
    ax.plot(range(1, len(values) + 1), values, color=color, lw=1)


def passes(ax: Any, found: dict[str, float], name: str, color: str) -> None:
    """Draw pass@k over k."""
    k = sorted(int(key.rpartition("_")[2]) for key in found if key.startswith(f"{name}_pass_"))
    ax.plot(k, [found[f"{name}_pass_{one}"] for one in k], color=color, lw=1)
    ax.set_xscale("log", base=2)
    ax.set_xticks(k[::2], [str(one) for one in k[::2]])
