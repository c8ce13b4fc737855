"""The error of a K = 4096 product in registers of 14 bits, by how often they are promoted.

The simulated tensor core (dsjax/numerics/accumulate.py) multiplies random matrices held as E4M3
codes with a scale a row and column, so that the registers' error is all there is.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import jax
import numpy as np
from jax import Array

from dsjax.numerics import accumulate, formats, scaled
from experiments.common import command, plot
from experiments.common.command import Asked
from experiments.fp8_vs_bf16 import STUDY

K, SIDE, SEEDS = 4096, 64, 16
QUICK_K, QUICK_SEEDS = 1024, 2
PROMOTE = (None, 1024, 512, 256, 128, 64, 32)
DRAWS = {"normal": jax.random.normal, "uniform": jax.random.uniform}  # of both signs, of one


def operands(k: int, kind: str, seed: int) -> tuple[Array, Array]:
    """Two random matrices [SIDE, K] and [K, SIDE] of E4M3 numbers."""
    keys = jax.random.split(jax.random.key(seed))
    a, b = (DRAWS[kind](key, shape) for key, shape in zip(keys, ((SIDE, k), (k, SIDE))))
    return (formats.decode(scaled.quantize(a, (1, scaled.WHOLE), ue8m0=True).codes),
            formats.decode(scaled.quantize(b, (scaled.WHOLE, 1), ue8m0=True).codes))


def measure(k: int, promote: int | None, seeds: int,
            kind: str = "normal") -> dict[str, list[float]]:
    """Largest and mean error over the mean size of an entry, for every seed."""
    found = [accumulate.relative_error(*operands(k, kind, seed), promote) for seed in range(seeds)]
    largest, mean = np.array(jax.tree.map(float, found)).T
    return {"largest": largest.tolist(), "mean": mean.tolist()}


def main(asked: Asked) -> None:
    """Measure and write the record; draw the figure from it."""
    jax.config.update("jax_platforms", "cpu")
    if not asked.is_redraw:
        write(asked, *((QUICK_K, QUICK_SEEDS) if asked.is_quick else (K, SEEDS)))
    draw(asked.folder)


def write(asked: Asked, k: int, seeds: int) -> None:
    """Measure by promotion at `k`, and by K without promotion and with N_C = 128."""
    by_promotion = {kind: {str(n or "never"): measure(k, n, seeds, kind) for n in PROMOTE}
                    for kind in DRAWS}
    lengths = [2**n for n in range(7, 14) if 2**n <= 2 * k]
    by_k = {name: {str(length): measure(length, n, seeds) for length in lengths}
            for name, n in (("never", None), ("128", 128))}
    rows = [[name, *(cell for kind in DRAWS for cell in said(by_promotion[kind][name]))]
            for name in by_promotion["normal"]]
    columns = ["promoted every", *(f"{kind}: {which}" for kind in DRAWS for which in
                                   ("largest error", "its least to most", "mean error"))]
    asked.write("accumulation",
                f"limited accumulation costs about 2 % at K = {K}, promotion mends it", columns,
                rows, seeds=list(range(seeds)), k=k, side=SIDE, by_promotion=by_promotion,
                by_k=by_k)


def said(found: dict[str, list[float]]) -> list[str]:
    """The largest error in the mean of seeds, between which it lies, and the mean error."""
    largest = 100 * np.array(found["largest"])
    return [f"{largest.mean():.3f} %", f"{largest.min():.3f} to {largest.max():.3f} %",
            f"{100 * np.mean(found['mean']):.3f} %"]


def draw(folder: Path) -> None:
    """The figure, from the record alone."""
    by_k = json.loads((folder / "records" / "accumulation.json").read_text())["by_k"]
    labels = {"never": "register of 14 bits alone", "128": "promoted every 128 of K"}
    with plot.figure(folder / "accumulation.svg") as ax:
        for color, (name, label) in zip(plot.COLORS[1::-1], labels.items()):
            k = np.array([int(key) for key in by_k[name]])
            largest = 100 * np.array([found["largest"] for found in by_k[name].values()])
            ax.fill_between(k, largest.min(1), largest.max(1), color=color, alpha=0.25, lw=0)
            ax.plot(k, largest.mean(1), color=color, marker="o", ms=3, label=label)
        errors = (0.05, 0.1, 0.2, 0.5, 1, 2, 5)
        ax.set(xscale="log", yscale="log", xticks=k, xticklabels=k, xlabel="K",
               yticks=errors, yticklabels=errors, ylabel="largest error, % of the mean entry",
               title="Promotion every 128 keeps the error of long sums in place")
        ax.minorticks_off()
        ax.legend(frameon=False)


if __name__ == "__main__":
    sys.exit(command.main(STUDY, "accumulation"))
