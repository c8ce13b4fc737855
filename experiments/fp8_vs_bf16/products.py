"""V3's products compiled for H200 and TPU7x: what a kernel keeps on the chip, XLA keeps in memory.

Needs the extras gpu-aot and tpu-aot, no GPU or TPU. Nothing is run, so nothing is said of speed; on
such a machine `dsjax bench gemm` measures it.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dsjax.cli.benches.gemm import V3_COLUMNS, V3_SHAPES
from dsjax.numerics.precision import Precision
from dsjax.plan import target
from dsjax.plan.target import Target
from dsjax.runtime.precision import Operands, fp8
from experiments.common import command, machines
from experiments.common.command import Asked
from experiments.fp8_vs_bf16 import STUDY

CASES: dict[str, tuple[Operands, Sequence[int]]] = {
    "h200:1x1": ("hopper", V3_COLUMNS), "tpu7x:2x2x1": ("tpu", (4096,))}
OPTIONS = {"cuda": {"xla_gpu_autotune_level": 0}, "tpu": None}
INSTRUCTION = re.compile(r"\b(?:wgmma\.mma_async|mma\.sync)[\w.]*")
COLUMNS = ["machine", "y = x w", "form", "MB of operands and result", "MB of temporaries",
           "seconds to compile", "tensor cores", "registers", "bytes spilled"]


def compiled(machine: Target, products: Precision, m: int, k: int,
             n: int) -> tuple[float, float, float]:
    """10^6 bytes of arguments and result, of temporaries, and seconds, of Fprop on one device."""
    where = NamedSharding(Mesh(target.devices(machine)[:1], ("x",)), PartitionSpec())
    x, w = (jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=where),
                         jax.eval_shape(hold, jax.ShapeDtypeStruct(shape, jnp.float32)))
            for hold, shape in ((products.quantize_for_fprop, (m, k)),
                                (products.quantize_weight, (k, n))))
    platform = machine.chip.platform
    began = time.perf_counter()
    lowered = jax.jit(products.fprop).trace(x, w).lower(lowering_platforms=(platform,))
    found = lowered.compile(compiler_options=OPTIONS[platform]).memory_analysis()
    outside = found.argument_size_in_bytes + found.output_size_in_bytes
    return outside / 1e6, found.temp_size_in_bytes / 1e6, time.perf_counter() - began


def assembled(folder: Path) -> list[str]:
    """Read a kernel's assembly in a folder: instructions, registers, spills."""
    ptx, said = ("".join(path.read_text() for path in folder.glob(f"*.{kind}"))
                 for kind in ("ptx", "ptxas"))
    if not ptx:
        return ["-"] * 3
    spilled = sum(map(int, re.findall(r"(\d+) bytes spill stores", said)))
    return [", ".join(sorted(set(INSTRUCTION.findall(ptx)))),
            ", ".join(re.findall(r"Used (\d+) registers", said)), str(spilled)]


def row(machine: Target, form: Operands, m: int, k: int, n: int) -> list[str]:
    """One form of one product."""
    named = {"codes": "XLA's products of codes", "values": "emulated"}.get(form, "kernel")
    with tempfile.TemporaryDirectory() as folder:
        for name, value in (("TO", folder), ("PTX", "1"), ("PTXAS", "1")):
            os.environ[f"MOSAIC_GPU_DUMP_{name}"] = value
        outside, temporaries, seconds = compiled(machine, fp8(form), m, k, n)
        return [machine.kind, f"{m:,} x {k:,} x {n:,}", named, f"{outside:,.0f}",
                f"{temporaries:,.0f}", f"{seconds:.1f}", *assembled(Path(folder))]


def main(asked: Asked) -> None:
    """Compile every form of every shape, and write the record."""
    jax.config.update("jax_platforms", "cpu")
    cases, shapes = CASES, V3_SHAPES
    if asked.is_quick:
        cases = {name: (CASES[name][0], (256,)) for name in machines.here(list(CASES))}
        shapes = {"m": 256, "k": 512}
    machines.require(list(cases))
    rows = [row(target.parse(machine), form, **shapes, n=n)
            for machine, (kernel, columns) in cases.items() for n in columns
            for form in (kernel, "codes", "values")]
    asked.write("products", "promotion on the chip needs no memory for partial sums", COLUMNS, rows,
                unit="10^6 bytes; compiled, not run")


if __name__ == "__main__":
    sys.exit(command.main(STUDY, "products"))
