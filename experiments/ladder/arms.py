"""Train a dense float32 model, then add one idea at a time; what each needs to the same loss.

The loss is the one with which the dense model of the same seed ends. Work is FLOPs of training
times the bytes of an operand over 4, as if a machine multiplied narrower ones so much faster: a
model, not a measurement; FLOPs alone, tokens and CPU seconds stand beside it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from dsjax.config.model import GQAConfig
from dsjax.config.run import OptimizerConfig, with_fields
from dsjax.model import count
from experiments.common import plot
from experiments.common.command import Asked
from experiments.common.small import answer, config, verdicts
from experiments.common.small.answer import Answer, Found, Record, Verdicts, mean, said
from experiments.common.small.trials import Trial

CONTEXT = 4096
"""Tokens whose cache a served token reads, in bfloat16."""
TOLD = 45
"""Times as efficient, as articles tell."""
OPERAND = {"fp32": 4, "fp8": 1}


def trials() -> list[Trial]:
    """Every arm, each the one before with one idea more."""
    run = config.config("ladder")
    model = run.model
    dense = dataclasses.replace(
        run, optimizer=OptimizerConfig(moments="float32"),
        output=dataclasses.replace(run.output, eval_every=25),
        model=dataclasses.replace(model, moe=None, dense_layers=model.layers, attention=GQAConfig(
            heads=4, kv_heads=4, head_dim=16)))
    moe = with_fields(dense, model={"moe": model.moe, "dense_layers": model.dense_layers})
    mla = with_fields(moe, model={"attention": model.attention})
    mtp = with_fields(mla, model={"mtp_depth": 1})
    fp8 = with_fields(mtp, precision={"matmul": "fp8"}, optimizer={"moments": "bfloat16"})
    return [Trial("dense", "dense, MHA, one token, float32", dense),
            Trial("MoE", "a mixture of 16 experts", moe), Trial("MLA", "latent attention", mla),
            Trial("MTP", "a second token", mtp), Trial("FP8", "FP8 and bfloat16 moments", fp8)]


def tokens_to(run: Record, nats: float, batch: int) -> float:
    """Tokens after which a run's held-out loss is at most `nats`, between evaluations in a line.

    Not a number where it never is.
    """
    curve = [(int(step) * batch, value) for step, value in run["curve"].items()]
    if curve[0][1] <= nats:
        return float(curve[0][0])
    for (before, above), (after, below) in pairwise(curve):
        if below <= nats:
            return before + (after - before) * (above - nats) / (above - below)
    return float("nan")


def needed(found: Found, name: str) -> dict[str, list[float]]:
    """Tokens, FLOPs, work and CPU seconds of each seed of an arm to the dense model's loss."""
    made = found[name]
    train, precision = made["config"]["train"], made["config"]["precision"]["matmul"]
    batch = train["batch_size"] * train["seq_len"]
    tokens = [tokens_to(one, base["nats"], batch) for one, base in
              zip(made["of_seeds"], found["dense"]["of_seeds"], strict=True)]
    flops = [made["flops_a_token"] * one for one in tokens]
    seconds = [one["cpu_seconds"] * used / one["tokens"]
               for one, used in zip(made["of_seeds"], tokens, strict=True)]
    return {"tokens": tokens, "flops": flops, "seconds": seconds,
            "work": [one * OPERAND[precision] / 4 for one in flops]}


def served(trial: Trial) -> dict[str, float]:
    """Bytes that one served token reads of weights and of the cache, and its FLOPs; no drafts."""
    found = count.count(trial.run.model, CONTEXT)
    touched = sum(part.params_active for part in found.parts if part.name != "embedding")
    weights = touched * OPERAND[trial.run.precision.matmul]
    return {"weights": weights, "cache": found.kv_bytes_per_token,
            "read": weights + CONTEXT * found.kv_bytes_per_token,
            "flops": found.flops_per_token / 3}


COLUMNS = ("with", "parameters", "held-out nats", "thousand tokens", "GFLOP",
           "GFLOP of float32's width", "CPU seconds", "MiB of masters and moments",
           "KiB of weights a served token reads", "bytes of cache a token", "KiB read at 4,096")


def state_bytes(made: Record) -> int:
    """Bytes of masters and both moments."""
    return made["parameters"] * (4 + 2 * (
        4 if made["config"]["optimizer"]["moments"] == "float32" else 2))


def table(found: Found) -> tuple[Sequence[str], list[list[Any]]]:
    """A row for each arm, means of seeds."""
    by_name = {trial.name: trial for trial in trials()}
    rows = []
    for name, made in found.items():
        need = {what: float(np.mean(one)) for what, one in needed(found, name).items()}
        serve = served(by_name[name])
        rows.append([
            made["claim"] if name == "dense" else f"+ {made['claim']}", f"{made['parameters']:,}",
            f"{mean(made, 'nats'):.4f}", f"{need['tokens'] / 1e3:.0f}",
            f"{need['flops'] / 1e9:.0f}", f"{need['work'] / 1e9:.0f}", f"{need['seconds']:.0f}",
            f"{state_bytes(made) / 2**20:.2f}", f"{serve['weights'] / 1024:.0f}",
            f"{serve['cache']:,.0f}", f"{serve['read'] / 1024:,.0f}"])
    return COLUMNS, rows


def judge(found: Found) -> Verdicts:
    """Verdicts by the rules of the page."""
    last = list(found)[-1]
    by_name = {trial.name: trial for trial in trials()}
    dense, mine = (needed(found, name)["work"] for name in ("dense", last))
    read = {name: served(by_name[name])["read"] for name in ("dense", last)}
    fewer = read["dense"] / read[last]
    serving = said(verdicts.SUPPORTS if fewer > 1 else verdicts.CONTRADICTS,
                   f"{fewer:.1f} times fewer bytes at a context of {CONTEXT:,}")
    if not np.isfinite(mine).all():
        missed = said(verdicts.CONTRADICTS, "the dense model's loss was not reached")
        return {"training": missed, "serving": serving, "times": missed}
    ratios = verdicts.paired(*([math.log(one) for one in work] for work in (mine, dense)))
    times, least, most = (math.exp(-one) for one in (ratios.mean, ratios.high, ratios.low))
    told = (verdicts.CONTRADICTS if most < TOLD else
            verdicts.SUPPORTS if least >= TOLD else verdicts.INCONCLUSIVE)
    return {
        "training": said(verdicts.lower(ratios),
                         f"{times:.1f} times less work of float32's width"),
        "serving": serving,
        "times": said(told, f"{times:.1f} times here"),
    }


def draw(found: Found, path: Path) -> None:
    """Needs of each rung, relative to the dense model."""
    by_name, names = {trial.name: trial for trial in trials()}, list(found)
    lines = {what: [float(np.mean(needed(found, name)[key])) for name in names]
             for what, key in (("tokens to its loss", "tokens"), ("FLOPs to its loss", "flops"),
                               ("work to its loss", "work"))}
    lines["bytes of masters and moments"] = [state_bytes(found[name]) for name in names]
    lines["bytes a served token reads"] = [served(by_name[name])["read"] for name in names]
    end = lines["work to its loss"][-1] / lines["work to its loss"][0]
    with plot.figure(path, width=8.6, height=4.2) as axes:
        for color, (what, one) in zip(plot.COLORS, lines.items(), strict=False):
            axes.plot(range(len(names)), np.array(one) / one[0], "o-", color=color, label=what)
        axes.axhline(1, color=plot.COLORS[2], lw=0.8)
        axes.set_yscale("log", base=2)
        axes.yaxis.set_major_formatter("{x:.2g}")
        axes.set_xticks(range(len(names)), [names[0], *(f"+ {name}" for name in names[1:])])
        axes.set_ylabel("relative to the dense float32 model")
        axes.set_title(f"All ideas reach the dense model's loss with {end:.2f} of its work")
        axes.legend()


ANSWER = Answer("arms", "what each idea needs to the loss of a dense float32 model", table, judge,
                draw)


def main(asked: Asked) -> int:
    """Train the arms, judge, write and draw."""
    return answer.main(asked, trials(), ANSWER)
