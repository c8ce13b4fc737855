"""Compile the engine's prefill of 128K tokens at V3's size for two machines that are not here.

Every device reads a prompt of its own in pieces and shares the experts with all others; weights and
caches rest in bfloat16. The program has a few of V3's layers, as one of all 61, each written out,
takes a compiler longer than most have patience for. Weights and pages are those of all 61 layers,
added up from their shapes. What a program works with grows with its layers, as compilers copy
weights ahead of their use: from programs of five and of seven layers the need of all is estimated,
as if it went on so. The program of all is a case of its own. Needs the extras tpu-aot and gpu-aot.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from dsjax.config.load import load
from dsjax.config.parallel import ParallelConfig
from dsjax.config.run import PrecisionConfig
from dsjax.errors import UserError
from dsjax.plan import prefill, target
from experiments.common import machines
from experiments.common.command import Asked
from experiments.pod.compiled import compiled, machine

V3 = ["deepseek_v3", "--precision", "bf16", "--prefill", "131072"]
H200 = [*V3, "--on", "h200:8x8", "--parallel.expert", "64", "--parallel.expert-nodes", "8"]
V5P = [*V3, "--on", "v5p:4x4x4", "--parallel.expert", "64"]
CASES = {
    "h200": [*H200, "--model.layers", "5"],
    "v5p": [*V5P, "--model.layers", "5"],
    "h200-7": [*H200, "--model.layers", "7"],
    "v5p-7": [*V5P, "--model.layers", "7"],
    "h200-all": H200,
    "v5p-all": V5P,
}
USUAL = ("h200", "v5p", "h200-7", "v5p-7")
"""Cases that are compiled where none is named."""
TINY = ["tiny", "--precision", "bf16", "--precision.activations", "bfloat16", "--prefill", "4096"]
QUICK = {"h200": [*TINY, "--on", "h200:1x4", "--parallel.expert", "4"],
         "v5p": [*TINY, "--on", "v5p:2x2x1", "--parallel.expert", "4"]}
KINDS = ("weights", "pages and slots", "activations and temporaries")
COLUMNS = ("compiled for", "devices", "layers compiled", "tokens a device", "at once",
           "weights of all, GB", "pages and slots of all, GB", "temporaries of these layers, GB",
           "estimate for all, GB", "a device has, GB", "minutes (CPU)", "GB of RAM here")


def main(asked: Asked) -> None:
    """Compile the cases that are asked for, and write the table after each."""
    cases = QUICK if asked.is_quick else CASES
    names = asked.values["case"] or (list(cases) if asked.is_quick else USUAL)
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
        found[name]["whole"] = whole(found[name])
        print(f"{name}: done", flush=True)
        there = [found[name] for name in cases if name in found]
        asked.write("ahead", "memory of a device that reads a long prompt at V3's size",
                    COLUMNS, [_row(one, estimate(there, one)) for one in there],
                    unit="bytes of one device; compiled, not run", cases=found)


def whole(found: dict[str, Any]) -> dict[str, int]:
    """Bytes of weights and pages of all layers of a case's config, by their shapes."""
    import jax

    jax.config.update("jax_platforms", "cpu")  # a plugin without its machine would look for it
    run = load(found["config"])
    run = dataclasses.replace(
        run, parallel=ParallelConfig(**found["parallel"]),
        precision=PrecisionConfig(found["precision"], found["activations"]))
    prompt = prefill.Prompt(found["prefill"], found["piece"])
    return prefill.lay(run, target.parse(found["machine"]), prompt).parts


def estimate(cases: Sequence[dict[str, Any]], one: dict[str, Any]) -> float | None:
    """Bytes of all layers, from one case and one of fewer layers; None where there is none."""
    layers, temporaries = load(one["config"]).model.layers, one["parts"][KINDS[-1]]
    fewer = [case for case in cases if case["machine"] == one["machine"]
             and case["layers"] < one["layers"]]
    if not fewer:
        return None
    more = temporaries - fewer[0]["parts"][KINDS[-1]]
    each = more / (one["layers"] - fewer[0]["layers"])
    return sum(one["whole"].values()) + temporaries + max(each, 0) * (layers - one["layers"])


def _row(found: dict[str, Any], needed: float | None) -> list[Any]:
    parts = found["parts"] | found["whole"]
    return [found["machine"], found["devices"], found["layers"], f"{found['prefill']:,}",
            found["piece"], *(f"{parts[kind] / 1e9:.2f}" for kind in KINDS),
            "-" if needed is None else f"{needed / 1e9:.0f}", f"{found['limit'] / 1e9:.0f}",
            f"{found['seconds'] / 60:.1f} ({found['cpu_seconds'] / 60:.1f})",
            f"{found['peak_memory'] / 1e9:.1f}"]
