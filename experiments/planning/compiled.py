"""Counted memory of V3's step beside what a compiler asked for, as experiments/pod recorded it."""

from __future__ import annotations

import json

from dsjax.config.load import load
from dsjax.config.run import with_fields
from dsjax.plan.cost import site
from dsjax.plan.cost.room import room
from experiments.common import record
from experiments.common.command import Asked

PODS = record.ROOT / "experiments/pod/records/pods.json"
ROWS = {  # rows of that record: chip, precision, what is made again
    "v5p bf16": ("v5p", "bf16", "full"),
    "h200 bf16": ("h200", "bf16", "v3"),
    "h200 fp8": ("h200", "fp8", "v3"),
    "v5p bf16, remat v3": ("v5p", "bf16", "v3"),
}


def main(asked: Asked) -> None:
    """Count each compiled step's bytes, and write both."""
    pods = json.loads(PODS.read_text())
    columns = pods["columns"]
    compiled = {row[0]: dict(zip(columns, row, strict=True)) for row in pods["rows"]}
    run = with_fields(
        load("deepseek_v3"), train={"batch_size_start": None, "batch_size_ramp_steps": 0,
                                    "batch_size": 16384, "microbatches": 8},
        parallel={"data": 4, "fsdp": 8, "expert": 64, "expert_nodes": 8})
    rows = []
    for name, (chip, precision, remat) in ROWS.items():
        found = room(with_fields(run, precision={"matmul": precision}, machine={"remat": remat}),
                     site.Site(chip, 2048))
        asks = float(compiled[name]["together"])
        rest = found.masters + found.moments
        rows.append([f"{name} ({remat})", f"{rest / 1e9:.2f}",
                     f"{float(compiled[name]['masters']) + float(compiled[name]['moments']):.2f}",
                     f"{found.total / 1e9:.1f}", f"{asks:.1f}",
                     f"{1e9 * asks / found.total:.2f}"])
    asked.write("compiled", "GB of a device, V3 on 2,048: counted, and asked for by the compiler",
                ["compiled for, precision", "masters and moments, counted", "compiled",
                 "all, counted", "all, compiled", "compiled over counted"], rows)
