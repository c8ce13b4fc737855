"""Train four attentions of equal parameters; compare held-out loss with what each caches."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dsjax.config.model import GQAConfig, MLAConfig
from dsjax.model import count
from experiments.common import plot
from experiments.common.command import Asked
from experiments.common.small import answer, config, drawn, verdicts
from experiments.common.small.answer import Answer, Found, Verdicts, against, mean, said
from experiments.common.small.trials import Trial

FORMS: dict[str, tuple[str, MLAConfig | GQAConfig]] = {
    "MLA": ("4 heads of 16 + 8, latent of 29", config.MLA),
    "MHA": ("4 heads of 16", GQAConfig(heads=4, kv_heads=4, head_dim=16)),
    "GQA": ("6 heads of 16 on 2", GQAConfig(heads=6, kv_heads=2, head_dim=16)),
    "MQA": ("7 heads of 16 on 1", GQAConfig(heads=7, kv_heads=1, head_dim=16)),
}
"""Attentions by name: 16,384 parameters a layer, of MLA 16,349 with its norm."""
MARGIN = 0.01
"""Nats that count as no cost."""


def trials() -> list[Trial]:
    """Every arm."""
    run = config.config("mla")
    return [Trial(name, words, dataclasses.replace(
        run, model=dataclasses.replace(run.model, attention=form)))
        for name, (words, form) in FORMS.items()]


def numbers(name: str) -> int:
    """Numbers a token that the layers of an arm cache."""
    model = config.config("mla").model
    return model.layers * count.cached_numbers(
        dataclasses.replace(model, attention=FORMS[name][1]))


COLUMNS = ("attention", "form", "parameters", "cached numbers a token", "held-out nats",
           "against MHA", "CPU seconds")


def table(found: Found) -> tuple[Sequence[str], list[list[Any]]]:
    """A row for each arm, means of seeds."""
    return COLUMNS, [
        [name, made["claim"], f"{made['parameters']:,}", numbers(name),
         f"{mean(made, 'nats'):.4f}",
         str(against(found, name, "MHA")) if "MHA" in found and name != "MHA" else "-",
         f"{mean(made, 'cpu_seconds'):.0f}"] for name, made in found.items()]


def judge(found: Found) -> Verdicts:
    """Verdicts by the rules of the page."""
    latent = against(found, "MLA", "MHA")
    worse = {name: against(found, name, "MHA") for name in ("GQA", "MQA")}
    words = [verdicts.lower(against(found, "MHA", name)) for name in worse]
    return {
        "mha": said(verdicts.no_higher(latent, MARGIN),
                    f"{latent} nats with {numbers('MLA')} numbers a token, not {numbers('MHA')}"),
        "gqa": said(verdicts.all_of(words),
                    ", ".join(f"{name} {one} nats" for name, one in worse.items())),
    }


def draw(found: Found, path: Path) -> None:
    """Loss against cache, and the curves."""
    best = against(found, "MLA", "MHA").mean
    with plot.figure(path, width=8.6, height=3.3, panels=2) as axes:
        for color, name in zip(plot.COLORS, found, strict=False):
            nats = answer.values(found[name], "nats")
            axes[0].plot([numbers(name)] * len(nats), nats, "o", color=color, alpha=0.6)
            axes[0].annotate(name, (numbers(name), min(nats)), color=color,
                             textcoords="offset points", xytext=(0, -12), ha="center")
        axes[0].margins(0.15)
        axes[0].set_xlabel("cached numbers a token, all layers")
        axes[0].set_ylabel("held-out nats a token")
        axes[0].set_title(f"MLA: {best:+.3f} nats at {numbers('MLA') / numbers('MHA'):.0%} of "
                          "MHA's cache")
        drawn.curves(axes[1], found, list(found))
        axes[1].set_title("Equal parameters, three seeds")


ANSWER = Answer("arms", "held-out loss and cache of four attentions of equal parameters", table,
                judge, draw)


def main(asked: Asked) -> int:
    """Train the arms, judge, write and draw."""
    return answer.main(asked, trials(), ANSWER)
