"""Training speed beside transformers on torch: whole processes in turn, ratios round by round.

The machine's speed drifts, so the two are run one after the other in every round and only ratios
within a round are compared. `--peer-python` names a Python with torch and transformers (see
peer_transformers.py).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from dsjax.cli.bench import Bench, shape_run
from experiments.common import record

HERE = Path(__file__).parent
DTYPES = {"float32": "float32", "bfloat16": "bfloat16 operands"}
HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}


def main() -> int:
    """Run the rounds of each shape and write the record; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer-python", required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--shapes", nargs="+", default=["tiny", "small"])
    args = parser.parse_args()
    measured = {shape: rounds_of(shape, args) for shape in args.shapes}
    rows = [row for shape in args.shapes for row in summary(shape, measured[shape])]
    columns = ["shape", "dsjax", "tokens/s", "peer tokens/s", "ratio", "min to max",
               "memory ratio", "compile s"]
    command = f"python -m experiments.speed.run --rounds {args.rounds} --steps {args.steps}"
    record.write(HERE / "records" / "training.json",
                 "training is faster than transformers 5.23 on torch 2.13 (float32, grouped_mm "
                 "experts, compiled), on CPU", columns, rows, command, rounds=measured)
    return record.main([str(HERE / "README.md"), str(record.ROOT / "README.md")])


def rounds_of(shape: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Every round: the peer, then dsjax in each dtype."""
    found = []
    for number in range(args.rounds):
        one = {"peer": peer(shape, args)}
        one |= {dtype: ours(shape, dtype, args.steps) for dtype in DTYPES}
        found.append(one)
        print(shape, number, {name: r["tok_s"] for name, r in one.items()}, flush=True)
    return found


def peer(shape: str, args: argparse.Namespace) -> dict[str, Any]:
    """One process of the peer, float32."""
    run = shape_run(Bench(shape=shape))
    words = ["--model", json.dumps(dataclasses.asdict(run.model)), "--batch",
             str(run.train.batch), "--seq", str(run.train.length), "--steps", str(args.steps)]
    return measure([args.peer_python, str(HERE / "peer_transformers.py"), *words], {})


def ours(shape: str, dtype: str, steps: int) -> dict[str, Any]:
    """One process of dsjax."""
    words = ["train", "--shape", shape, "--dtype", dtype, "--steps", str(steps)]
    return measure([sys.executable, "-m", "dsjax", "bench", *words], HUGE_PAGES)


def measure(command: list[str], extra: dict[str, str]) -> dict[str, Any]:
    """The JSON of a process's last line."""
    done = subprocess.run(command, cwd=record.ROOT, env=os.environ | extra, text=True,
                          stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout.strip().splitlines()[-1])


def summary(shape: str, rounds: list[dict[str, Any]]) -> list[list[str]]:
    """A row a dtype: medians, and the ratio within rounds with its spread."""
    rows = []
    for dtype, name in DTYPES.items():
        ratios = [r[dtype]["tok_s"] / r["peer"]["tok_s"] for r in rounds]
        memory = [r[dtype]["peak_rss_mib"] / r["peer"]["peak_rss_mib"] for r in rounds]

        def middle(who: str, key: str = "tok_s") -> float:
            return statistics.median(r[who][key] for r in rounds)

        rows.append([shape, name, f"{middle(dtype):,.0f}", f"{middle('peer'):,.0f}",
                     f"{statistics.median(ratios):.2f}", f"{min(ratios):.2f} to {max(ratios):.2f}",
                     f"{statistics.median(memory):.2f}", f"{middle(dtype, 'compile_s'):.1f}"])
    return rows


if __name__ == "__main__":
    sys.exit(main())
