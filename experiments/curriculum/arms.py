"""Train on rows of one length and on growing ones, at equal tokens; loss by position in the end."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dsjax.config.run import SequenceStage, TrainConfig
from dsjax.data.loader import heldout_batches
from dsjax.model import loss as losses
from dsjax.runtime import backend as backends
from experiments.common import plot
from experiments.common.command import Asked
from experiments.common.small import answer, config, drawn, verdicts
from experiments.common.small.answer import Answer, Found, Verdicts, against, mean, said
from experiments.common.small.trials import Trained, Trial

LENGTH, ROWS = 512, 2
STAGES = ((0, 64), (0.25, 128), (0.5, 256), (0.75, LENGTH))
BATCHES = 48
MARGIN = 0.01
"""Nats that count as no cost."""


def trials() -> list[Trial]:
    """Every arm: as many tokens a step in each, cut into rows of the lengths that it has."""
    run = config.config("curriculum")
    train = TrainConfig(steps=run.train.steps, batch_size=ROWS, seq_len=LENGTH)

    def staged(*stages: tuple[float, int]) -> TrainConfig:
        return dataclasses.replace(train, curriculum=tuple(SequenceStage(*s) for s in stages))

    arms = {"fixed": (f"rows of {LENGTH}", train),
            "growing": ("rows of 64, 128, 256, 512, a quarter each", staged(*STAGES)),
            "short": ("rows of 128, never longer", staged((0, 128)))}
    return [Trial(name, words, dataclasses.replace(run, train=one))
            for name, (words, one) in arms.items()]


def by_position(of: Trained) -> dict[str, Any]:
    """Held-out nats by position in rows of the whole length, in eighths of it."""
    length, backend = of.run.train.seq_len, backends.for_run(of.run)
    scored = jax.jit(lambda p, tokens, segments: losses.token_logprobs(
        p, tokens, segments, of.run.model, backend))
    total, count = np.zeros(length), np.zeros(length)
    for batch, _ in heldout_batches(of.text.heldout, ROWS, of.text.token_sizes, most=BATCHES):
        found = np.asarray(scored(of.params, jnp.asarray(batch["tokens"]),
                                  jnp.asarray(batch["segments"])), np.float64)[:, 1:]
        real = batch["weights"][:, 1:] > 0
        total -= np.where(real, found, 0).sum(0)
        count += real.sum(0)
    eighths = total.reshape(8, -1).sum(1) / np.maximum(count.reshape(8, -1).sum(1), 1)
    return {"by_position": [round(float(one), 4) for one in eighths],
            "late": round(float(eighths[4:].mean()), 5)}


COLUMNS = ("arm", "rows", "held-out nats", "against fixed", "nats in the second half of a row",
           "against fixed, there", "CPU seconds")


def table(found: Found) -> tuple[Sequence[str], list[list[Any]]]:
    """A row for each arm, means of seeds."""
    def apart(name: str, what: str) -> str:
        return str(against(found, name, "fixed", what)) if name != "fixed" else "-"

    return COLUMNS, [[name, made["claim"], f"{mean(made, 'nats'):.4f}", apart(name, "nats"),
                      f"{mean(made, 'late'):.4f}", apart(name, "late"),
                      f"{mean(made, 'cpu_seconds'):.0f}"] for name, made in found.items()]


def judge(found: Found) -> Verdicts:
    """Verdicts by the rules of the page."""
    whole, late = (against(found, "growing", "fixed", what) for what in ("nats", "late"))
    time = against(found, "growing", "fixed", "cpu_seconds")
    share = mean(found["growing"], "cpu_seconds") / mean(found["fixed"], "cpu_seconds")
    return {"loss": said(verdicts.no_higher(whole, MARGIN), f"{whole} nats"),
            "late": said(verdicts.no_higher(late, MARGIN), f"{late} nats in the second half"),
            "time": said(verdicts.lower(time), f"{share:.2f} of the CPU seconds")}


def draw(found: Found, path: Path) -> None:
    """Loss by position, and curves by tokens."""
    late = against(found, "growing", "fixed", "late").mean
    with plot.figure(path, width=8.6, height=3.2, panels=2) as axes:
        middle = (np.arange(8) + 0.5) * LENGTH / 8
        for color, name in zip(plot.COLORS, found, strict=False):
            nats = np.array([one["by_position"] for one in found[name]["of_seeds"]])
            axes[0].plot(middle, nats.mean(0), color=color, label=name)
            axes[0].fill_between(middle, nats.min(0), nats.max(0), color=color, alpha=0.2, lw=0)
        axes[0].set_xlabel("position in a row, tokens")
        axes[0].set_ylabel("held-out nats a token")
        axes[0].set_title(f"Growing rows: {late:+.3f} nats late in a row")
        axes[0].legend()
        drawn.curves(axes[1], found, list(found))
        axes[1].set_title("Equal tokens, three seeds")


ANSWER = Answer("arms", "loss by position and time of growing rows", table, judge, draw)


def main(asked: Asked) -> int:
    """Train the arms, judge, write and draw."""
    return answer.main(asked, trials(), ANSWER, by_position)
