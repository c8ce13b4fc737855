"""Training speed beside transformers on torch: whole processes in turn, ratios round by round.

The machine's speed drifts, so the two are run one after the other in every round and only ratios
within a round are compared. A ratio depends on the processor, too: each process times square
products of its own library, so that a table says what either reaches of the machine.
`--peer-python` names a Python with torch and transformers (see peer_transformers.py).
"""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from dsjax.cli.benches.shapes import Bench, shape_run
from dsjax.errors import UserError
from experiments.common import record
from experiments.common.command import Asked

PEER = Path(__file__).parent / "peer_transformers.py"
SHAPES = ("tiny", "small")
DTYPES = {"float32": "float32", "bfloat16": "bfloat16 operands"}
COLUMNS = ("shape", "dsjax", "tokens/s", "peer tokens/s", "ratio", "min to max", "memory ratio",
           "compile s", "of the matmul rate", "matmul GFLOP/s", "peer's, float32")
HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}


def main(asked: Asked) -> None:
    """Run the rounds of each shape and write the record."""
    given = asked.values
    if unknown := [shape for shape in given["shapes"] if shape not in SHAPES]:
        raise UserError(f"there is no shape {unknown[0]!r}; choose from {', '.join(SHAPES)}")
    if asked.is_quick:
        given = given | {"rounds": 1, "steps": 3, "shapes": ["tiny"]}
    elif given["peer_python"] is None:
        raise UserError("there is nothing to compare with: give --peer-python, a Python with torch "
                        "and transformers (experiments/speed/peer_transformers.py says which)")
    measured = {shape: rounds_of(shape, given) for shape in given["shapes"]}
    if given["peer_python"] is None:
        print("without a peer there is no ratio, and no table")
        return
    rows = [row for shape in given["shapes"] for row in summary(shape, measured[shape])]
    words = f"{asked.command} --rounds {given['rounds']} --steps {given['steps']}"
    dataclasses.replace(asked, command=words).write(
        "training",
        "training is faster than transformers 5.23 on torch 2.13 (float32, grouped_mm "
        "experts, compiled), on CPU", COLUMNS, rows, rounds=measured)


def rounds_of(shape: str, given: dict[str, Any]) -> list[dict[str, Any]]:
    """Every round: the peer, if there is one, then dsjax in each dtype."""
    found = []
    for number in range(given["rounds"]):
        one = {"peer": peer(shape, given)} if given["peer_python"] else {}
        one |= {dtype: ours(shape, dtype, given["steps"]) for dtype in DTYPES}
        found.append(one)
        print(shape, number, {name: r["tok_s"] for name, r in one.items()}, flush=True)
    return found


def peer(shape: str, given: dict[str, Any]) -> dict[str, Any]:
    """One process of the peer, float32."""
    run = shape_run(Bench(shape=shape))
    words = ["--model", json.dumps(dataclasses.asdict(run.model)), "--batch",
             str(run.train.batch_size), "--seq", str(run.train.seq_len), "--steps",
             str(given["steps"])]
    return measure([given["peer_python"], str(PEER), *words], {})


def ours(shape: str, dtype: str, steps: int) -> dict[str, Any]:
    """One process of dsjax."""
    words = ["train", "--shape", shape, "--dtype", dtype, "--steps", str(steps)]
    return measure([sys.executable, "-m", "dsjax", "bench", *words], HUGE_PAGES)


def measure(command: list[str], extra: dict[str, str]) -> dict[str, Any]:
    """Run a process and return the JSON of its last line."""
    done = subprocess.run(command, cwd=record.ROOT, env=os.environ | extra, text=True,
                          stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout.strip().splitlines()[-1])


def summary(shape: str, rounds: list[dict[str, Any]]) -> list[list[str]]:
    """One row a dtype: medians, and the ratio within rounds with its spread."""
    rows = []
    for dtype, name in DTYPES.items():
        ratios = [r[dtype]["tok_s"] / r["peer"]["tok_s"] for r in rounds]
        memory = [r[dtype]["peak_rss_mib"] / r["peer"]["peak_rss_mib"] for r in rounds]

        def middle(who: str, key: str = "tok_s") -> float:
            return statistics.median(r[who][key] for r in rounds)

        rows.append([shape, name, f"{middle(dtype):,.0f}", f"{middle('peer'):,.0f}",
                     f"{statistics.median(ratios):.2f}", f"{min(ratios):.2f} to {max(ratios):.2f}",
                     f"{statistics.median(memory):.2f}", f"{middle(dtype, 'compile_s'):.1f}",
                     f"{middle(dtype, 'mfu'):.0%}", f"{middle(dtype, 'peak_gflop_s'):,.0f}",
                     f"{middle('peer', 'peak_gflop_s'):,.0f}"])
    return rows
