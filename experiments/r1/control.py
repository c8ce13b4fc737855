"""Control: bases that were shown as many worked solutions, in which the sums are wrong.

Text and run are those of `zero` but for the digits of the running sums, which are drawn. A worked
solution so has its length and its place in the text, ends in the right answer, and does not help to
find it. `dsjax rl` refuses a base whose worked solutions are wrong; `--rl.base-right 0` lets it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from dsjax.config.run import RunConfig
from dsjax.rl import base
from dsjax.rl.tasks import catalog, task
from dsjax.rl.tasks.task import Problem
from dsjax.rl.update import rl_of
from experiments.common import plot
from experiments.common.command import Asked
from experiments.r1 import tables, teach, zero

SAMPLES = 16
"""Of each question, from which sampled accuracy is taken."""


def main(asked: Asked) -> None:
    """Run each seed, write the table and draw it beside `zero`."""
    seeds = teach.seeds(asked)
    if asked.is_redraw:
        runs = zero.kept(asked, "control", seeds)
    else:
        runs = [taught(asked, seed) for seed in seeds]
        asked.write("control", "the same where the worked solutions that the base was shown have "
                    "sums drawn at random", tables.COLUMNS, tables.rows(runs),
                    verdict=tables.verdict_of_control(runs))
    draw(asked, runs, [] if asked.is_quick else zero.kept(asked, "zero", seeds))


def taught(asked: Asked, seed: int) -> dict[str, Any]:
    """The record of a seed."""
    run = dataclasses.replace(teach.config(), seed=seed)
    if asked.is_quick:
        run = dataclasses.replace(
            run, rl=dataclasses.replace(rl_of(run), level=teach.QUICK["rl.level"]),
            train=dataclasses.replace(run.train, steps=teach.QUICK["train.steps"]))

    def prepare(folder: Path) -> None:
        base.write(folder / "base", run, documents(run))

    return teach.teach(asked, "control", seed, SAMPLES, ("--rl.base-right", "0"), prepare)


def documents(run: RunConfig) -> Iterator[str]:
    """Text of a base, with sums that are drawn; problems and kinds of responses are its own."""
    cfg = rl_of(run)
    of, rng = catalog.find(cfg.task), np.random.default_rng([run.seed, 1])
    texts = task.documents(of, cfg.level, cfg.base_long, run.seed)
    for problem, text in zip(task.problems(of, cfg.level, "train", run.seed), texts, strict=True):
        is_long = text == problem.prompt + problem.long
        yield problem.prompt + (scrambled(problem, rng) if is_long else problem.short)


def scrambled(problem: Problem, rng: np.random.Generator) -> str:
    """The long response of a sum, whose trace is digit, sum, digit, sum, ..., its sums drawn."""
    drawn = rng.integers(0, 10, len(problem.trace) // 2)
    trace = "".join(f"{digit}{number}" for digit, number in zip(problem.trace[::2], drawn))
    return f"{trace}:{problem.answer}"


def draw(asked: Asked, runs: list[dict[str, Any]], beside: list[dict[str, Any]]) -> None:
    """Draw reward, length and held-out accuracy of both, a line for each seed."""
    arms = (("sums are right", beside, plot.COLORS[0]), ("sums are drawn", runs, plot.COLORS[1]))
    with plot.figure(asked.folder / "control.svg", width=8.6, height=2.5, panels=3) as axes:
        reward, length, accuracy = axes.flat
        for name, of, color in arms:
            for made in of:
                zero.curve(reward, made["curves"]["reward"], color)
                zero.curve(length, made["curves"]["length"], color)
                exams = made["exams"]
                accuracy.plot([exam["step"] for exam in exams],
                              [exam["sampled"] for exam in exams], color=color, lw=1)
            length.plot([], [], color=color, label=name)
        for ax, title in zip(axes.flat, ("Reward", "Tokens of an output", "Held out, sampled"),
                             strict=True):
            ax.set_title(title)
            ax.set_xlabel("step")
        for ax in (reward, accuracy):
            ax.set_ylim(0, 1.04)
        length.set_ylim(bottom=0)
        length.legend(loc="center right")
