"""Train feed-forwards of equal active width, 160 hidden channels a token: dense, coarse to finest.

Mixtures have 544 hidden channels in all, the coarse one 560, so that no arm is helped by size but
the one that the claim would have lose.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dsjax.config.model import MoEConfig
from experiments.common import plot
from experiments.common.command import Asked
from experiments.common.small import answer, config, drawn, verdicts
from experiments.common.small.answer import Answer, Found, Verdicts, against, mean, said
from experiments.common.small.trials import Trial

KINDS: dict[str, tuple[str, MoEConfig]] = {
    "fine": ("16 experts of 32, 4 chosen, one shared", config.MOE),
    "coarse": ("7 experts of 80, 2 chosen, none shared",
               MoEConfig(experts=7, experts_per_token=2, expert_dim=80, shared_experts=0)),
    "finest": ("32 experts of 16, 8 chosen, two shared",
               MoEConfig(experts=32, experts_per_token=8, expert_dim=16, shared_experts=2)),
    "unshared": ("17 experts of 32, 5 chosen, none shared",
                 MoEConfig(experts=17, experts_per_token=5, expert_dim=32, shared_experts=0)),
}
"""Mixtures by name, in words and as a config."""


def trials() -> list[Trial]:
    """Every arm."""
    run = config.config("moe")
    dense = dataclasses.replace(run.model, moe=None, dense_layers=run.model.layers)
    made = [
        Trial(name, words, dataclasses.replace(run, model=dataclasses.replace(run.model, moe=moe)))
        for name, (words, moe) in KINDS.items()]
    return [*made, Trial("dense", "a dense feed-forward of 160",
                         dataclasses.replace(run, model=dense))]


COLUMNS = ("arm", "feed-forward", "parameters", "FLOPs a token", "held-out nats", "against fine",
           "CPU seconds")


def table(found: Found) -> tuple[Sequence[str], list[list[Any]]]:
    """A row for each arm, means of seeds."""
    return COLUMNS, [
        [name, made["claim"], f"{made['parameters']:,}", f"{made['flops_a_token']:,.0f}",
         f"{mean(made, 'nats'):.4f}",
         str(against(found, name, "fine")) if "fine" in found and name != "fine" else "-",
         f"{mean(made, 'cpu_seconds'):.0f}"] for name, made in found.items()]


def judge(found: Found) -> Verdicts:
    """Verdicts by the rules of the page."""
    made = {"dense": against(found, "fine", "dense"), "fine": against(found, "unshared", "coarse"),
            "shared": against(found, "fine", "unshared")}
    return {key: said(verdicts.lower(one), f"{one} nats") for key, one in made.items()}


def draw(found: Found, path: Path) -> None:
    """Curves of all arms, and where they end."""
    names = list(found)
    gain = mean(found["dense"], "nats") - mean(found["fine"], "nats")
    with plot.figure(path, width=8.6, height=3.3, panels=2) as axes:
        drawn.curves(axes[0], found, names)
        axes[0].set_title(f"Fine experts end {gain:.3f} nats below dense" if gain > 0 else
                          f"Fine experts end {-gain:.3f} nats above dense")
        drawn.dots(axes[1], found, names, "nats", "held-out nats a token")
        axes[1].set_title("Equal active FLOPs, three seeds")


ANSWER = Answer("arms", "held-out loss of feed-forwards of equal active FLOPs", table, judge, draw)


def main(asked: Asked) -> int:
    """Train the arms, judge, write and draw."""
    return answer.main(asked, trials(), ANSWER)
