"""Compile V3's step for two pods, and a small model's for one host of each, and record what came.

With names of cases only those are compiled, and the tables keep what they have of the others. Needs
the extras tpu-aot and gpu-aot.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax

from dsjax.errors import UserError
from experiments.common import machines
from experiments.common.command import Asked

V3 = ["deepseek_v3", "--parallel.data", "4", "--parallel.fsdp", "8", "--parallel.expert", "64",
      "--train.batch-size", "16384", "--train.microbatches", "8",
      "--train.batch-size-start", "None"]
V5P = [*V3, "--on", "v5p:8x16x16"]
H200 = [*V3, "--on", "h200:256x8", "--parallel.expert-nodes", "8"]
LITE = ["deepseek_v2_lite", "--train.seq-len", "4096", "--train.batch-size", "16",
        "--machine.remat", "full", "--parallel.expert", "8", "--precision", "bf16",
        "--precision.activations", "bfloat16"]
PODS = {
    "v5p bf16": [*V5P, "--precision", "bf16", "--machine.remat", "full"],
    "h200 bf16": [*H200, "--precision", "bf16"],
    "h200 fp8": H200,
    "v5p bf16, two rows interleaved": [
        *V5P, "--precision", "bf16", "--machine.remat", "full", "--train.microbatches", "4",
        "--parallel.interleave"],
    "h200 bf16, two rows interleaved": [
        *H200, "--precision", "bf16", "--train.microbatches", "4", "--parallel.interleave"],
    "v5p bf16, remat v3": [*V5P, "--precision", "bf16"],
}
HOSTS = {
    f"{kind} {form}{' interleaved' if halves else ''}":
        [*LITE, "--on", machine, "--parallel.exchange", form,
         *(["--parallel.interleave"] if halves else [])]
    for kind, machine in (("v5p", "v5p:2x2x2"), ("h200", "h200:1x8"))
    for form in ("ragged", "padded")
    for halves in (False, True)
}
TINY = ["tiny", "--train.batch-size", "16", "--parallel.expert", "8"]
QUICK = {"v5p tiny": [*TINY, "--on", "v5p:2x2x2"], "h200 tiny": [*TINY, "--on", "h200:1x8"]}
SHARES = ("beside products (of its bytes)", "of these beside attention", "beside other work alone")
SHARED = ("hidden", "attention", "other")
COUNTED = ("count", "bytes", "asynchronous", *SHARED, *(f"{kind}_bytes" for kind in SHARED))
EXCHANGES = ("ragged-all-to-all", "all-to-all")


def compiled(words: list[str]) -> dict[str, Any]:
    """Return what `dsjax compile --json` says of a case; status 1 is a step that does not fit."""
    command = [sys.executable, "-m", "dsjax", "compile", *words, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1) or not done.stdout:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def gigabytes(size: float) -> str:
    """10^9 bytes, two decimals."""
    return f"{size / 1e9:.2f}"


def shares(row: dict[str, Any]) -> list[str]:
    """Collectives beside products, attention's, other work alone, with their shares of bytes.

    Cases of records from before attention was counted have a dash there.
    """
    return [f"{row[kind]} ({row[kind + '_bytes'] / max(row['bytes'], 1):.0%})"
            if kind in row else "-" for kind in SHARED]


def pods(asked: Asked, cases: dict[str, dict]) -> None:
    """Write the tables of the pods: memory by kind, and collectives."""
    first = next(iter(cases.values()))
    kinds = [(part, name) for part in ("parts", "working") for name in first[part]]
    columns = ["compiled for, precision", *(name for _, name in kinds), "together",
               "a device has", "minutes (CPU)", "GB of RAM here"]
    rows = [
        [name, *(gigabytes(c[part][kind]) for part, kind in kinds), gigabytes(c["bytes"]),
         gigabytes(c["limit"]), f"{c['seconds'] / 60:.1f} ({c['cpu_seconds'] / 60:.1f})",
         gigabytes(c["peak_memory"])]
        for name, c in cases.items()
    ]
    asked.write("pods", "V3's whole step fits 2,048 devices of either kind", columns, rows,
                unit="GB of one device; compiled, not run", cases=cases)
    found = [
        [name, row["kind"], row["group"], row["runs"], gigabytes(row["bytes"]),
         f"{row['asynchronous']} of {row['count']}", *shares(row)]
        for name, c in cases.items() for row in c["collectives"] if row["bytes"] >= 1e7
    ]
    asked.write("collectives", "what a device exchanges in a step",
                ["compiled for, precision", "collective", "devices", "runs a step", "GB a step",
                 "asynchronous", *SHARES],
                found, unit="buffers of one device; compiled, not run")


def hosts(asked: Asked, cases: dict[str, dict]) -> None:
    """Write the table of overlap: exchanges of tokens of a small model on eight devices."""
    rows = []
    for name, c in cases.items():
        mine = [r for r in c["collectives"] if r["kind"] in EXCHANGES and r["bytes"] >= 1e6]
        whole = {key: sum(r[key] for r in mine) for key in COUNTED if key in mine[0]}
        rows.append([name, whole["count"], whole["asynchronous"], *shares(whole),
                     gigabytes(whole["bytes"]), gigabytes(c["bytes"])])
    asked.write("overlap", "exchanges of tokens run beside matrix products",
                ["compiled for, form", "exchanges in the program", "asynchronous", *SHARES,
                 "GB a step", "GB of a device"],
                rows, unit="compiled, not run", cases=cases)


def kept(path: Path) -> dict[str, dict]:
    """Cases of a record that is there."""
    return json.loads(path.read_text())["cases"] if path.is_file() else {}


def machine(words: list[str]) -> str:
    """The machine that a case is compiled for."""
    return words[words.index("--on") + 1]


def main(asked: Asked) -> None:
    """Compile the cases that are asked for, and write the tables after each."""
    jax.config.update("jax_platforms", "cpu")  # the compilers' plugins look for their machines
    names = asked.values["case"]
    if unknown := [name for name in names if name not in PODS | HOSTS]:
        raise UserError(f"there is no case {unknown[0]!r}; choose from "
                        f"{', '.join(map(repr, PODS | HOSTS))}")
    tables = ((pods, "pods", PODS), (hosts, "overlap", HOSTS))
    if asked.is_quick:
        there = machines.here([machine(words) for words in QUICK.values()])
        tables = ((pods, "pods", {n: w for n, w in QUICK.items() if machine(w) in there}),)
    machines.require([machine(words) for _, _, cases in tables for name, words in cases.items()
                      if name in (names or cases)])
    for table, record, cases in tables:
        for name, words in cases.items():
            if name not in (names or cases):
                continue
            made = compiled(words)
            found = kept(asked.records / f"{record}.json") | {name: made}
            table(asked, {n: found[n] for n in cases if n in found})
            print(f"{name}: done", flush=True)
