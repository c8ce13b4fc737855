"""V3's products compiled for an H200: what the kernel keeps in registers, XLA keeps in memory.

Needs the extra gpu-aot, no GPU. Nothing is run, so nothing is said of speed; on such a machine
`dsjax bench gemm` measures it.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dsjax.cli.bench_gemm import V3_COLUMNS, V3_SHAPES
from dsjax.numerics.products import Products
from dsjax.plan import target
from dsjax.train import platform
from experiments.common import record

HERE = Path(__file__).parent
COMMAND = "python -m experiments.fp8_vs_bf16.hopper"
MACHINE = "h200:1x1"
FORMS = {"kernel": "kernel", "codes": "XLA's products of codes", "values": "emulated"}
INSTRUCTION = re.compile(r"\b(?:wgmma\.mma_async|mma\.sync)[\w.]*")
COLUMNS = ["y = x w", "form", "MB of operands and result", "MB of temporaries",
           "seconds to compile", "tensor cores", "registers", "bytes spilled"]


def compiled(products: Products, m: int, k: int, n: int) -> tuple[float, float, float]:
    """10^6 bytes of arguments and result, of temporaries, and seconds, of Fprop on the machine."""
    mesh = Mesh(target.devices(target.parse(MACHINE)), ("x",))
    where = NamedSharding(mesh, PartitionSpec())
    x, w = (jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=where),
                         jax.eval_shape(hold, jax.ShapeDtypeStruct(shape, jnp.float32)))
            for hold, shape in ((products.hold_once, (m, k)), (products.hold_weight, (k, n))))
    began = time.perf_counter()
    lowered = jax.jit(products.fprop).trace(x, w).lower(lowering_platforms=("cuda",))
    found = lowered.compile(compiler_options={"xla_gpu_autotune_level": 0}).memory_analysis()
    outside = found.argument_size_in_bytes + found.output_size_in_bytes
    return outside / 1e6, found.temp_size_in_bytes / 1e6, time.perf_counter() - began


def assembled(folder: Path) -> list[str]:
    """What the kernel became, from its assembly in a folder: instructions, registers, spills."""
    ptx, said = ("".join(path.read_text() for path in folder.glob(f"*.{kind}"))
                 for kind in ("ptx", "ptxas"))
    if not ptx:
        return ["-"] * 3
    spilled = sum(map(int, re.findall(r"(\d+) bytes spill stores", said)))
    return [", ".join(sorted(set(INSTRUCTION.findall(ptx)))),
            ", ".join(re.findall(r"Used (\d+) registers", said)), str(spilled)]


def row(form: str, m: int, k: int, n: int) -> list[str]:
    """One form of one product."""
    with tempfile.TemporaryDirectory() as folder:
        for name, value in (("TO", folder), ("PTX", "1"), ("PTXAS", "1")):
            os.environ[f"MOSAIC_GPU_DUMP_{name}"] = value
        outside, temporaries, seconds = compiled(platform.fp8_products(form), m, k, n)
        return [f"{m:,} x {k:,} x {n:,}", FORMS[form], f"{outside:,.0f}", f"{temporaries:,.0f}",
                f"{seconds:.1f}", *assembled(Path(folder))]


def main() -> int:
    """Compile every form of every shape, and write the record; returns the exit status."""
    jax.config.update("jax_platforms", "cpu")
    rows = [row(form, **V3_SHAPES, n=n) for n in V3_COLUMNS for form in FORMS]
    record.write(HERE / "records" / "hopper.json",
                 "promotion in registers needs no memory for partial sums", COLUMNS, rows, COMMAND,
                 machine=MACHINE, unit="10^6 bytes; compiled, not run")
    return record.main([str(HERE / "README.md")])


if __name__ == "__main__":
    sys.exit(main())
