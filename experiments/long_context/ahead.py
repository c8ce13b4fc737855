"""Compile the engine's prefill of 128K tokens at V3's size for two machines that are not here.

Every device reads a prompt of its own in pieces and shares the experts with all others; weights and
caches rest in bfloat16. Needs the extras tpu-aot and gpu-aot.
"""

from __future__ import annotations

import json
from typing import Any

from dsjax.errors import UserError
from experiments.common import machines
from experiments.common.command import Asked
from experiments.pod.compiled import compiled, machine

V3 = ["deepseek_v3", "--precision", "bf16", "--prefill", "131072"]
CASES = {
    "h200": [*V3, "--on", "h200:8x8", "--parallel.expert", "64", "--parallel.expert-nodes", "8"],
    "v5p": [*V3, "--on", "v5p:4x4x4", "--parallel.expert", "64"],
}
TINY = ["tiny", "--precision", "bf16", "--precision.activations", "bfloat16", "--prefill", "4096"]
QUICK = {"h200": [*TINY, "--on", "h200:1x4", "--parallel.expert", "4"],
         "v5p": [*TINY, "--on", "v5p:2x2x1", "--parallel.expert", "4"]}
KINDS = ("weights", "pages and slots", "activations and temporaries")
COLUMNS = ("compiled for", "devices", "tokens a device", "at once", *(f"{k}, GB" for k in KINDS),
           "together, GB", "a device has, GB", "minutes (CPU)", "GB of RAM here")


def main(asked: Asked) -> None:
    """Compile the cases that are asked for, and write the table after each."""
    cases = QUICK if asked.is_quick else CASES
    names = asked.values["case"] or list(cases)
    if unknown := [name for name in names if name not in cases]:
        raise UserError(f"there is no case {unknown[0]!r}; choose from {', '.join(cases)}")
    if asked.is_quick:
        there = machines.here([machine(words) for words in cases.values()])
        names = [name for name in names if machine(cases[name]) in there]
    machines.require([machine(cases[name]) for name in names])
    path = asked.records / "ahead.json"
    found = json.loads(path.read_text())["cases"] if path.is_file() else {}
    for name in names:
        found[name] = compiled(cases[name])
        print(f"{name}: done", flush=True)
        asked.write("ahead", "a device that reads a long prompt at V3's size has memory to spare",
                    COLUMNS, [_row(found[name]) for name in cases if name in found],
                    unit="bytes of one device; compiled, not run", cases=found)


def _row(found: dict[str, Any]) -> list[Any]:
    return [found["machine"], found["devices"], f"{found['prefill']:,}", found["piece"],
            *(f"{found['parts'][kind] / 1e9:.2f}" for kind in KINDS),
            f"{found['bytes'] / 1e9:.2f}", f"{found['limit'] / 1e9:.0f}",
            f"{found['seconds'] / 60:.1f} ({found['cpu_seconds'] / 60:.1f})",
            f"{found['peak_memory'] / 1e9:.1f}"]
