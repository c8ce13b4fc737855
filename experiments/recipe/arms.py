"""Train with the whole schedule of V3 and with each part left out, at equal tokens."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dsjax.config.run import OptimizerConfig, RunConfig, TrainConfig
from dsjax.config.schedule import LearningRate
from dsjax.data import curriculum
from experiments.common import plot
from experiments.common.command import Asked
from experiments.common.small import answer, config, drawn, verdicts
from experiments.common.small.answer import Answer, Found, Verdicts, against, mean, said, values
from experiments.common.small.trials import Trial

RATE = LearningRate(peak=4e-3, low=4e-4, last=4e-4 / 3, warmup_steps=0.05, constant_steps=0.4,
                    cosine_steps=0.48, low_steps=0.04, last_steps=0.03)
"""V3's five parts and their ratios of rates, in shares of the run."""
WITHOUT = {"no-ramp": "ramp", "no-warmup": "warmup", "no-decay": "decay", "one-phase": "phases"}
"""Claims by the arm that leaves their part out."""


def ramped(train: TrainConfig) -> TrainConfig:
    """Batches from 2 rows to all over the first fifth of a run of as many tokens, or up to a row
    of steps more."""
    wanted = train.steps * train.batch_size * train.seq_len
    steps = train.steps
    while True:
        made = dataclasses.replace(train, steps=steps, batch_size_start=2,
                                   batch_size_ramp_steps=0.2, batch_size_multiple=2)
        if curriculum.tokens_after(made, steps) >= wanted:
            return made
        steps += 1


def trials() -> list[Trial]:
    """Every arm; the whole schedule first."""
    plain = config.config("recipe")
    plain = dataclasses.replace(plain, learning_rate=RATE,
                                optimizer=OptimizerConfig(ema_decay=0.98, ema_every=5))
    run = dataclasses.replace(plain, train=ramped(plain.train))

    def rate(**changed: float) -> RunConfig:
        return dataclasses.replace(run, learning_rate=dataclasses.replace(RATE, **changed))

    return [
        Trial("all", "ramp, warm-up, cosine, two low phases", run),
        Trial("no-ramp", "batches of 8 rows throughout", plain),
        Trial("no-warmup", "the peak from the first step", rate(
            warmup_steps=0, constant_steps=0.45)),
        Trial("no-decay", "the peak to the end", rate(
            constant_steps=0.95, cosine_steps=0, low_steps=0, last_steps=0)),
        Trial("one-phase", "a cosine to the end", rate(
            cosine_steps=0.55, low_steps=0, last_steps=0)),
    ]


COLUMNS = ("arm", "schedule", "steps", "tokens", "held-out nats", "against all",
           "of the average, nats", "average less its run")


def table(found: Found) -> tuple[Sequence[str], list[list[Any]]]:
    """A row for each arm, means of seeds."""
    rows = []
    for name, made in found.items():
        own = verdicts.paired(values(made, "nats_average"), values(made, "nats"))
        rows.append([name, made["claim"], made["config"]["train"]["steps"],
                     f"{mean(made, 'tokens'):,.0f}", f"{mean(made, 'nats'):.4f}",
                     str(against(found, name, "all")) if name != "all" else "-",
                     f"{mean(made, 'nats_average'):.4f}", str(own)])
    return COLUMNS, rows


def judge(found: Found) -> Verdicts:
    """Verdicts by the rules of the page."""
    made = {}
    for name, key in WITHOUT.items():
        gain = against(found, "all", name)
        made[key] = said(verdicts.lower(gain), f"{gain} nats")
    held = found["no-decay"]
    raw, average = (verdicts.paired(values(held, what), values(found["all"], "nats"))
                    for what in ("nats", "nats_average"))
    after = values(found["all"], "nats")
    nearer = verdicts.paired(*([abs(a - b) for a, b in zip(values(held, what), after, strict=True)]
                               for what in ("nats_average", "nats")))
    made["average"] = said(verdicts.lower(nearer),
                           f"without decay the average is {average.mean:+.4f} nats from the loss "
                           f"after it, the parameters {raw.mean:+.4f}")
    return made


def draw(found: Found, path: Path) -> None:
    """Curves, and where each arm ends against the whole schedule."""
    worst = max(WITHOUT, key=lambda name: mean(found[name], "nats"))
    with plot.figure(path, width=8.6, height=3.2, panels=2) as axes:
        drawn.curves(axes[0], found, list(found))
        axes[0].set_title("Equal tokens, three seeds")
        drawn.dots(axes[1], found, list(found), "nats", "held-out nats a token")
        axes[1].set_title(f"{WITHOUT[worst].capitalize()} left out: "
                          f"{-against(found, 'all', worst).mean:+.3f} nats")


ANSWER = Answer("arms", "held-out loss of V3's schedule with a part left out", table, judge, draw)


def main(asked: Asked) -> int:
    """Train the arms, judge, write and draw."""
    return answer.main(asked, trials(), ANSWER)
