"""Run `dsjax bench layouts` and `dsjax bench links`, and record their tables.

Every step has to be compiled; a run that was stopped goes on faster with JAX_COMPILATION_CACHE_DIR.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from experiments.common import record

HERE = Path(__file__).parent
NUMBERS = ("loss", "parts", "gradients", "bias", "metrics")


def rows(*words: str) -> list[dict]:
    """The JSON lines of a benchmark, in a process of its own: it makes its virtual devices."""
    command = [sys.executable, "-m", "dsjax", "bench", *words, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def main() -> None:
    found = rows("layouts")
    table = [
        [f"{r['data']} x {r['fsdp']} x {r['expert']}", *(f"{r[n]:.0e}" for n in NUMBERS),
         r["steps"]]
        for r in found
    ]
    record.write(
        HERE / "records" / "layouts.json",
        "loss, gradients, biases and metrics of a step are one device's on every layout of eight",
        ["data x fsdp x expert", "loss", "its parts", "gradients", "bias", "metrics", "steps"],
        table, "python -m experiments.layouts.run",
        unit="largest difference over the largest number of a leaf", layouts=found,
    )
    counted = rows("links")
    record.write(
        HERE / "records" / "links.json",
        "two hops cross to each node once: at most 4 nodes a token with V3's routing",
        ["hops", "nodes a token, at most", "copies on slow links", "bytes", "on fast links",
         "bytes"],
        [[r["hops"], r["most_nodes"], f"{r['slow_copies']:.2f}", f"{r['slow_bytes']:,}",
          f"{r['fast_copies']:.2f}", f"{r['fast_bytes']:,}"] for r in counted],
        "python -m experiments.layouts.run", unit="a token and layer, forward", links=counted,
    )


if __name__ == "__main__":
    main()
