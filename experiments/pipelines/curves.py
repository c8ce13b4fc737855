"""tiny under DualPipe on four virtual devices and on one device: the same curve.

Rounding differs by the order of float32 sums alone, and training makes any such difference larger:
sooner or later a token's choice of experts that is undecided within a rounding turns, and from
there two runs part. `calm` keeps the rate and the router's bias at V3's own size and moments in
float32. `as it is` is the config's recipe, 14 times V3's rate, and has a control: one device that
adds up 4 microbatches where the others have 8.

A run that was stopped goes on; finished ones are read from runs/pipelines.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from dsjax.report.metrics import read_metrics
from experiments.common import plot
from experiments.common.command import Asked

STEPS = 60
COMMON = ("--output.eval-every", "0", "--output.save-every", "0", "--precision", "fp32",
          "--train.steps")
PIPED = ("--parallel.pipe", "4", "--parallel.schedule", "dualpipe", "--devices", "8")
ARMS = {
    "one device": ("--train.microbatches", "8"),
    "DualPipe": (*PIPED, "--train.microbatches", "8"),
}
QUICK = {  # two layers on two ranks and few tokens: most of the time goes into compiling
    arm: ("--model.layers", "2", "--train.batch-size", "4", "--train.seq-len", "64",
          "--train.microbatches", "4", *more)
    for arm, more in (("one device", ()), ("DualPipe", (
        "--parallel.pipe", "2", "--parallel.schedule", "dualpipe", "--devices", "2")))}
CONTROL = {"one device, 4 microbatches": ("--train.microbatches", "4")}
RECIPES = {
    "calm": ("--learning-rate.peak", "2.2e-4", "--learning-rate.low", "2.2e-5",
             "--learning-rate.last", "7.3e-6", "--loss.bias-speed", "0.001",
             "--optimizer.moments", "float32"),
    "as it is": (),
}


def trained(out: Path, words: tuple[str, ...], steps: int) -> np.ndarray:
    """Train in a process of its own; next-token loss by step."""
    path = out / "metrics.jsonl"
    if not path.exists() or len(read_metrics(path, "train")) < steps:
        env = {k: v for k, v in os.environ.items() if k != "JAX_NUM_CPU_DEVICES"}
        subprocess.run([sys.executable, "-m", "dsjax", "train", "tiny", *words, *COMMON,
                        str(steps), "--output.folder", str(out)], check=True, env=env,
                       stdout=subprocess.DEVNULL)
    return np.array([e["loss"] for e in read_metrics(path, "train")])


def main(asked: Asked) -> None:
    """Train what is not there yet, write the record, draw the figure from it."""
    if not asked.is_redraw:
        measure(asked, 4 if asked.is_quick else STEPS)
    draw(asked.folder)


def measure(asked: Asked, steps: int) -> None:
    """Train every arm of the recipes and write the record; a quick form has the calm one alone."""
    rows, curves = [], {}
    for recipe, words in list(RECIPES.items())[: 1 if asked.is_quick else None]:
        lines = {}
        arms = QUICK if asked.is_quick else ARMS | (CONTROL if not words else {})
        for arm, more in arms.items():
            out = asked.runs / f"{recipe}_{arm}".replace(" ", "_").replace(",", "")
            lines[arm] = trained(out, (*more, *words), steps)
            print(recipe, arm, lines[arm][-1], flush=True)
        alone = lines["one device"]
        for arm in list(lines)[1:]:
            apart = np.abs(lines[arm] / alone - 1)
            same = int((apart > 1e-6).argmax()) if (apart > 1e-6).any() else steps
            rows.append([recipe, arm, f"{alone[-1]:.5f}", f"{lines[arm][-1]:.5f}", same,
                         f"{apart[:20].max():.0e}", f"{apart.max():.0e}"])
        curves[recipe] = {arm: line.tolist() for arm, line in lines.items()}
    asked.write(
        "curves",
        "tiny trains under DualPipe to the curve of one device",
        ["recipe", "against one device", "its last loss", "last loss", "steps within 1e-6",
         "apart in 20 steps", f"in {steps}"],
        rows, unit="nats a token; largest relative difference of the loss", steps=steps,
        curves=curves, commands={arm: " ".join(("dsjax train tiny", *more, *COMMON, str(steps)))
                                 for arm, more in (
                                     QUICK if asked.is_quick else ARMS | CONTROL).items()},
    )


def draw(folder: Path) -> None:
    """The figure, from the record alone."""
    curves = json.loads((folder / "records" / "curves.json").read_text())["curves"]
    with plot.figure(folder / "curves.svg", width=plot.PAGE, panels=len(curves)) as axes:
        for axis, (recipe, lines) in zip(np.atleast_1d(axes), curves.items(), strict=True):
            for (arm, line), color, style in zip(lines.items(), plot.COLORS, ("-", "--", ":"),
                                                 strict=False):
                axis.plot(range(1, len(line) + 1), line, style, color=color, label=arm)
            alone = np.array(lines["one device"])
            apart = np.abs(np.array(lines["DualPipe"]) / alone - 1).max()
            axis.set(xlabel="step", ylabel="nats a token",
                     title=f"{recipe}: apart by {apart:.0e} at most")
            axis.legend(frameon=False)
