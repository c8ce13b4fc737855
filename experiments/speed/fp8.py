"""What FP8 costs a CPU that has no FP8: steps of each precision in turn, ratios round by round.

`python -m experiments.speed.fp8 [--rounds N] [--steps N]`. Whole processes, as in run.py.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from typing import Any

from experiments.common import record
from experiments.speed.run import HERE, ours

DTYPES = ("bfloat16", "fp8", "float32")
SHAPES = ("tiny", "small")


def main() -> int:
    """Run the rounds of each shape and write the record; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20)
    args = parser.parse_args()
    measured: dict[str, list[dict[str, Any]]] = {shape: [] for shape in SHAPES}
    for number in range(args.rounds):
        for shape in SHAPES:
            one = {dtype: ours(shape, dtype, args.steps) for dtype in DTYPES}
            measured[shape].append(one)
            print(shape, number, {name: r["ms_median"] for name, r in one.items()}, flush=True)
    columns = ["shape", *(f"{dtype} ms" for dtype in DTYPES), "fp8 to bfloat16", "min to max",
               "fp8 to float32", "min to max"]
    command = f"python -m experiments.speed.fp8 --rounds {args.rounds} --steps {args.steps}"
    record.write(HERE / "records" / "fp8.json",
                 "an emulated FP8 step takes at most 1.35 of a bfloat16 step and no more than a "
                 "float32 step", columns, [summary(s, r) for s, r in measured.items()], command,
                 rounds=measured)
    return record.main([str(HERE / "README.md")])


def summary(shape: str, rounds: list[dict[str, Any]]) -> list[str]:
    """A shape's row: medians of the rounds, and the two ratios with their spread."""
    row = [shape, *(f"{statistics.median(r[d]['ms_median'] for r in rounds):,.0f}"
                    for d in DTYPES)]
    for other in ("bfloat16", "float32"):
        ratios = [r["fp8"]["ms_median"] / r[other]["ms_median"] for r in rounds]
        row += [f"{statistics.median(ratios):.2f}", f"{min(ratios):.2f} to {max(ratios):.2f}"]
    return row


if __name__ == "__main__":
    sys.exit(main())
