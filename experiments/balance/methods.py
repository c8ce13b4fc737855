"""Train with each way to balance experts, and count where the tokens of each kind of line go.

The batch-wise loss is not in `dsjax`, as no released model uses it: sum_i f_i P_i as V3's eq. 17,
with f and P of all rows of a batch together instead of each row's.

Axes: L mixture layers, B rows, T tokens, E experts, N kinds of lines.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from dsjax.config.run import RunConfig
from dsjax.layers.backend import Backend
from dsjax.layers.router import RouterStats
from dsjax.model import loss as losses
from dsjax.model import transformer
from dsjax.model.loss import Batch, LossParts, Objective
from dsjax.model.transformer import TransformerParams
from dsjax.runtime import backend as backends
from experiments.balance import kinds
from experiments.common import plot
from experiments.common.command import Asked
from experiments.common.small import answer, config, drawn, verdicts
from experiments.common.small.answer import Answer, Found, Verdicts, against, mean, said
from experiments.common.small.trials import Trained, Trial

ALPHA = 0.01
"""Weight of both balance losses: DeepSeekMoE's at 2B (arXiv 2401.06066, sec. 4)."""
SPEEDS = {"bias-0.001": 0.001, "bias-0.01": 0.01, "bias-0.05": 0.05}
FREE = "bias-0.01"
MARGIN = 0.01
"""Nats that count as no cost: 0.3 % of the loss, as between V3's Table 5's columns."""
EVEN = 0.5
"""Share of the violation without balancing that the bias may leave."""


def batchwise(p: TransformerParams, batch: Batch, objective: Objective, run: RunConfig,
              backend: Backend) -> tuple[TransformerParams, Array, LossParts]:
    """As `dsjax.train.step.gradients`, with a balance loss over the whole batch."""
    def total(p: TransformerParams) -> tuple[Array, LossParts]:
        length = batch.tokens.shape[1] - 1
        main = transformer.hidden(p, batch.tokens[:, :length], batch.segments[:, :length],
                                  run.model, backend)
        found, parts = losses.after_layers(p, main.x, main.stats, batch, objective, run.model,
                                           backend)
        assert main.stats is not None, "a batch-wise loss balances experts"
        return found + ALPHA * batch_balance(main.stats), parts

    (found, parts), grads = jax.value_and_grad(total, has_aux=True)(p)
    return grads, found, parts


def batch_balance(stats: RouterStats) -> Array:
    """Sum over layers and experts of f P, both of the whole batch. Leaves [L, B, E]."""
    return (stats.frequency.mean(1) * stats.affinity.mean(1)).sum()


def trials() -> list[Trial]:
    """Every arm."""
    run = config.config("balance")
    assert run.model.moe is not None, "the studies' model has experts"
    fixed = dataclasses.replace(run, model=dataclasses.replace(
        run.model, moe=dataclasses.replace(run.model.moe, has_bias=False)))

    def with_loss(of: RunConfig, **changed: float) -> RunConfig:
        return dataclasses.replace(of, loss=dataclasses.replace(of.loss, **changed))

    return [
        Trial(FREE, "the bias, 0.01 a step", with_loss(run, bias_speed=SPEEDS[FREE])),
        Trial("none", "no balancing", with_loss(fixed, bias_speed=0.0)),
        Trial("loss", f"V2's expert-level loss in each row, {ALPHA}",
              with_loss(fixed, bias_speed=0.0, expert_balance=ALPHA)),
        Trial("batch-loss", f"the same loss over the batch, {ALPHA}",
              with_loss(fixed, bias_speed=0.0), batchwise),
        *(Trial(name, f"the bias, {speed} a step", with_loss(run, bias_speed=speed))
          for name, speed in SPEEDS.items() if name != FREE),
    ]


def shares(of: Trained) -> dict[str, Any]:
    """Loads by kind of line [L, N, E] over their mean, of lines of plays; and their spread."""
    tokens, names = kinds.rows(of.text.tokenizer, of.run.train.seq_len)
    stats = transformer.hidden(of.params, jnp.asarray(tokens), jnp.ones_like(tokens), of.run.model,
                               backends.for_run(of.run)).stats
    assert stats is not None, "the model has experts"
    loads = np.asarray(stats.loads, np.float64)
    by_kind = np.stack([loads[:, [i for i, n in enumerate(names) if n == kind]].sum(1)
                        for kind in kinds.KINDS], axis=1)
    relative = by_kind / by_kind.mean(-1, keepdims=True)
    whole = by_kind.sum(1, keepdims=True)
    against_all = by_kind / by_kind.sum(-1, keepdims=True) - whole / whole.sum(-1, keepdims=True)
    return {"by_kind": np.round(relative, 3).tolist(),
            "special": round(float(0.5 * np.abs(against_all).sum(-1).mean()), 4)}


COLUMNS = ("balancing", "held-out nats", "against V2's loss", "MaxVio, last quarter",
           "MaxVio, a step", "dead experts", "starved", "of", "apart by kind")


def table(found: Found) -> tuple[Sequence[str], list[list[Any]]]:
    """A row for each arm, means of seeds; experts are counted over layers."""
    rows = []
    for name, made in found.items():
        other = str(against(found, name, "loss")) if "loss" in found and name != "loss" else "-"
        rows.append([name, f"{mean(made, 'nats'):.4f}", other,
                     *(f"{mean(made, key):.2f}" for key in ("max_violation", "max_violation_step")),
                     *(f"{mean(made, key):.1f}" for key in ("dead", "starved")),
                     f"{mean(made, 'experts'):.0f}", f"{mean(made, 'special'):.3f}"])
    return COLUMNS, rows


def judge(found: Found) -> Verdicts:
    """Verdicts by the rules of the page."""
    vio = {name: mean(made, "max_violation") for name, made in found.items()}
    even = against(found, FREE, "none", "max_violation")
    lost = mean(found["none"], "dead") + mean(found["none"], "starved")
    kept = mean(found[FREE], "dead") == 0
    words = [verdicts.lower(even) if kept and vio[FREE] <= EVEN * vio["none"]
             else verdicts.CONTRADICTS,
             verdicts.SUPPORTS if lost > 0 else verdicts.INCONCLUSIVE]
    cost, batch = against(found, FREE, "loss"), against(found, "batch-loss", FREE)
    special = against(found, "loss", FREE, "special")
    return {
        "balance": said(verdicts.all_of(words),
                        f"MaxVio {vio[FREE]:.2f} against {vio['none']:.2f}; without balancing "
                        f"{lost:.1f} of {mean(found['none'], 'experts'):.0f} experts starve"),
        "loss": said(verdicts.no_higher(cost, MARGIN), f"{cost} nats"),
        "batch": said(verdicts.no_higher(batch, MARGIN), f"{batch} nats against the bias"),
        "special": said(verdicts.lower(special),
                        f"loads by kind of line lie {mean(found[FREE], 'special'):.3f} apart, with "
                        f"V2's loss {mean(found['loss'], 'special'):.3f}"),
    }


def draw(found: Found, path: Path) -> None:
    """Violation and loss of each arm; a heat map of who reads which lines in the last layer."""
    names = list(found)
    with plot.figure(path, width=8.6, height=2.9, panels=4, columns=2) as axes:
        drawn.dots(axes[0, 0], found, names, "max_violation", "MaxVio over the last quarter")
        axes[0, 0].set_title(f"{mean(found['none'], 'max_violation'):.1f} without balancing, "
                             f"{mean(found[FREE], 'max_violation'):.2f} with the bias")
        drawn.dots(axes[0, 1], found, names, "nats", "held-out nats a token")
        axes[0, 1].set_title(f"Bias: {against(found, FREE, 'loss').mean:+.3f} nats against "
                             "the loss")
        for at, name in ((axes[1, 0], "loss"), (axes[1, 1], FREE)):
            heat = np.array(found[name]["of_seeds"][0]["by_kind"][-1])
            image = at.imshow(heat, cmap="Blues", vmin=0, vmax=3, aspect="auto")
            at.grid(visible=False)
            at.set_yticks(range(len(kinds.KINDS)), list(kinds.KINDS))
            at.set_xlabel("expert of the last layer, seed 0")
            at.set_title({"loss": "V2's loss", FREE: "The bias"}[name]
                         + f": {mean(found[name], 'special'):.2f} apart by kind")
            at.figure.colorbar(image, ax=at, label="load / mean")


ANSWER = Answer("methods", "a moving bias balances experts at no cost in held-out loss", table,
                judge, draw)


def main(asked: Asked) -> int:
    """Train the arms, judge, write and draw."""
    return answer.main(asked, trials(), ANSWER, shares)
