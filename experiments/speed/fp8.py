"""The cost of FP8 on a CPU that has none: steps of each precision in turn, ratios round by round.

Whole processes, as in training.py.
"""

from __future__ import annotations

import dataclasses
import statistics
import sys
from typing import Any

from experiments.common import command
from experiments.common.command import Asked
from experiments.speed import STUDY
from experiments.speed.training import SHAPES, ours

DTYPES = ("bfloat16", "fp8", "float32")


def main(asked: Asked) -> None:
    """Run the rounds of each shape and write the record."""
    count, steps, shapes = asked.values["rounds"], asked.values["steps"], SHAPES
    if asked.is_quick:
        count, steps, shapes = 1, 3, SHAPES[:1]
    measured: dict[str, list[dict[str, Any]]] = {shape: [] for shape in shapes}
    for number in range(count):
        for shape in shapes:
            one = {dtype: ours(shape, dtype, steps) for dtype in DTYPES}
            measured[shape].append(one)
            print(shape, number, {name: r["ms_median"] for name, r in one.items()}, flush=True)
    columns = ["shape", *(f"{dtype} ms" for dtype in DTYPES), "fp8 to bfloat16", "min to max",
               "fp8 to float32", "min to max", "bfloat16 matmul GFLOP/s", "float32"]
    words = f"{asked.command} --rounds {count} --steps {steps}"
    dataclasses.replace(asked, command=words).write(
        "fp8",
        "an emulated FP8 step takes at most 1.35 of a bfloat16 step and no more than a "
        "float32 step", columns, [summary(s, r) for s, r in measured.items()], rounds=measured)


def summary(shape: str, rounds: list[dict[str, Any]]) -> list[str]:
    """Row of a shape: medians of the rounds, two ratios with their spread, and matmul rates."""
    row = [shape, *(f"{statistics.median(r[d]['ms_median'] for r in rounds):,.0f}"
                    for d in DTYPES)]
    for other in ("bfloat16", "float32"):
        ratios = [r["fp8"]["ms_median"] / r[other]["ms_median"] for r in rounds]
        row += [f"{statistics.median(ratios):.2f}", f"{min(ratios):.2f} to {max(ratios):.2f}"]
    return row + [f"{statistics.median(r[d]['peak_gflop_s'] for r in rounds):,.0f}"
                  for d in ("bfloat16", "float32")]


if __name__ == "__main__":
    sys.exit(command.main(STUDY, "fp8"))
