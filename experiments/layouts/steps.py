"""Run `dsjax bench layouts` and `dsjax bench links`, and record their tables.

Every step has to be compiled; a run that was stopped goes on faster with JAX_COMPILATION_CACHE_DIR.
"""

from __future__ import annotations

import json
import subprocess
import sys

from experiments.common.command import Asked

NUMBERS = ("loss", "parts", "gradients", "bias", "metrics")


def rows(*words: str) -> list[dict]:
    """The JSON lines of a benchmark, in a process of its own: it makes its virtual devices."""
    command = [sys.executable, "-m", "dsjax", "bench", *words, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def one_layout() -> list[dict]:
    """The rows of a single layout, one count of microbatches and one kind of rows."""
    import jax

    jax.config.update("jax_num_cpu_devices", 2)
    from dsjax.cli.benches import equal_layouts
    from dsjax.config.parallel import ParallelConfig

    kind, layout = equal_layouts.KINDS[0], ParallelConfig(expert=2)
    alone = equal_layouts.Stepper(ParallelConfig()).take(kind)
    found = equal_layouts.compare(layout, 1, kind, equal_layouts.Stepper(layout), alone)
    axes = {"data": layout.data, "fsdp": layout.fsdp, "expert": layout.expert}
    return [axes | {name: getattr(found, name) for name in NUMBERS}
            | {"extra_rounds": found.extra_rounds, "steps": 1}]


def main(asked: Asked) -> None:
    """Run both, write both records."""
    found = one_layout() if asked.is_quick else rows("layouts")
    table = [
        [f"{r['data']} x {r['fsdp']} x {r['expert']}", *(f"{r[n]:.0e}" for n in NUMBERS),
         r["steps"]]
        for r in found
    ]
    asked.write(
        "layouts",
        "loss, gradients, biases and metrics of a step are one device's on every layout of eight",
        ["data x fsdp x expert", "loss", "its parts", "gradients", "bias", "metrics", "steps"],
        table, unit="largest difference over the largest number of a leaf", layouts=found,
    )
    counted = rows("links")
    asked.write(
        "links",
        "two hops cross to each node once: at most 4 nodes a token with V3's routing",
        ["hops", "nodes a token, at most", "copies on slow links", "bytes", "on fast links",
         "bytes"],
        [[r["hops"], r["most_nodes"], f"{r['slow_copies']:.2f}", f"{r['slow_bytes']:,}",
          f"{r['fast_copies']:.2f}", f"{r['fast_bytes']:,}"] for r in counted],
        unit="a token and layer, forward", links=counted,
    )
