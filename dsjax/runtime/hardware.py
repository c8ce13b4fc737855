"""The one table of chips: memory, rates and shapes, with sources; and the peak of this machine.

A share of the peak (MFU) is useful FLOPs a second over the best matmul rate of the machine: a data
sheet's where `CHIPS` has the chip, otherwise measured here. Data sheets give no rate for products
of float32 operands at full precision (several passes in bfloat16 on a TPU), so that one is always
measured.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from dsjax.numerics.wide import exact

TERA, GB = 10**12, 10**9
Operand = Literal["float32", "tf32", "bfloat16", "float8"]


@dataclass(frozen=True)
class Fabric:
    """Links of one device, in bytes/s one way, by the data sheet."""

    near: int  # to the devices of its domain: NVLink, a TPU's torus, PCIe
    domain: int  # devices that reach each other so
    far: int  # to all others, over the network
    source: str


@dataclass(frozen=True)
class Chip:
    """One kind of device, as JAX counts devices; rates are dense matrix products, in FLOP/s."""

    platform: Literal["tpu", "cuda", "cpu"]
    device_kinds: tuple[str, ...]  # what JAX calls it
    memory: int  # bytes of one device, by the data sheet; a compiler may know of a little more
    bf16: float
    fp8: float | None  # None where the chip has no such products
    source: str
    cores: int = 1  # devices of a chip
    axes: int = 3  # of the torus that chips form, at most; of GPUs, nodes and GPUs of a node
    multiprocessors: int | None = None
    bandwidth: int | None = None  # of the memory, bytes/s
    memory_for_xla: int | None = None  # bytes that XLA's description of the GPU names
    fabric: Fabric | None = None
    wide: float | None = None  # float32 products, where they were measured: no data sheet has them


def _torus(each_way: int) -> Fabric:
    """Links of a TPU: half of the sheet's bandwidth of a device leaves it, over its torus."""
    return Fabric(each_way, 9216, each_way, "inter-chip interconnect of the chip's page, halved")


NVLINK4 = Fabric(450 * GB, 8, 50 * GB, "NVLink 4, 900 GB/s both ways; one 400 Gb/s NIC a GPU")
NVLINK5 = "NVLink 5, 1,800 GB/s both ways; one {} Gb/s NIC a GPU"

CHIPS = {
    "v4": Chip("tpu", ("TPU v4",), 32 * GB, 275 * TERA, None, "cloud.google.com/tpu/docs/v4",
               bandwidth=1228 * GB, fabric=_torus(150 * GB)),
    "v5e": Chip("tpu", ("TPU v5 lite",), 16 * GB, 197 * TERA, None,
                "cloud.google.com/tpu/docs/v5e", axes=2, bandwidth=819 * GB,
                fabric=_torus(100 * GB)),
    "v5p": Chip("tpu", ("TPU v5", "TPU v5p"), 95 * GB, 459 * TERA, None,
                "cloud.google.com/tpu/docs/v5p", bandwidth=2765 * GB, fabric=_torus(300 * GB)),
    "v6e": Chip("tpu", ("TPU v6 lite",), 32 * GB, 918 * TERA, None,
                "cloud.google.com/tpu/docs/v6e", axes=2, bandwidth=1640 * GB,
                fabric=_torus(224 * GB)),
    "tpu7x": Chip("tpu", ("TPU7x",), 96 * GB, 1153.5 * TERA, 2307 * TERA,
                  "cloud.google.com/tpu/docs/tpu7x; a jax device is half a chip", cores=2,
                  bandwidth=3690 * GB, fabric=_torus(300 * GB)),
    "a100-40": Chip("cuda", ("NVIDIA A100-SXM4-40GB",), 40 * GB, 312 * TERA, None,
                    "NVIDIA A100 data sheet", bandwidth=1555 * GB,
                    fabric=Fabric(300 * GB, 8, 25 * GB, "NVLink 3; one 200 Gb/s NIC a GPU")),
    "a100-80": Chip("cuda", ("NVIDIA A100-SXM4-80GB",), 80 * GB, 312 * TERA, None,
                    "NVIDIA A100 data sheet", bandwidth=2039 * GB,
                    fabric=Fabric(300 * GB, 8, 25 * GB, "NVLink 3; one 200 Gb/s NIC a GPU")),
    "h100": Chip("cuda", ("NVIDIA H100 80GB HBM3",), 80 * GB, 989.5 * TERA, 1979 * TERA,
                 "NVIDIA H100 SXM data sheet, halved: no sparsity", multiprocessors=132,
                 bandwidth=3350 * GB, memory_for_xla=85 * GB, fabric=NVLINK4),
    "h800": Chip("cuda", ("NVIDIA H800",), 80 * GB, 989.5 * TERA, 1979 * TERA,
                 "as H100 SXM (DeepSeek-V3 report, sec. 3.1)", multiprocessors=132,
                 bandwidth=3350 * GB, memory_for_xla=85 * GB,
                 fabric=Fabric(200 * GB, 8, 50 * GB, "NVLink of 400 GB/s both ways; one 400 Gb/s "
                               "NIC a GPU (V3 report, sec. 3.2.2)")),
    "h200": Chip("cuda", ("NVIDIA H200",), 141 * GB, 989.5 * TERA, 1979 * TERA,
                 "NVIDIA H200 SXM data sheet, halved: no sparsity", multiprocessors=132,
                 bandwidth=4800 * GB, memory_for_xla=150 * GB, fabric=NVLINK4),
    "b200": Chip("cuda", ("NVIDIA B200",), 180 * GB, 2250 * TERA, 4500 * TERA,
                 "NVIDIA HGX B200 data sheet, halved: no sparsity", bandwidth=8000 * GB,
                 fabric=Fabric(900 * GB, 8, 50 * GB, NVLINK5.format(400))),
    "b300": Chip("cuda", ("NVIDIA B300",), 270 * GB, 2250 * TERA, 4500 * TERA,
                 "NVIDIA HGX B300 data sheet, halved: no sparsity", bandwidth=8000 * GB,
                 fabric=Fabric(900 * GB, 8, 100 * GB, NVLINK5.format(800))),
    "gb200": Chip("cuda", ("NVIDIA GB200",), 186 * GB, 2500 * TERA, 5000 * TERA,
                  "NVIDIA GB200 NVL72 data sheet, a 72nd, halved: no sparsity", bandwidth=8000 * GB,
                  fabric=Fabric(900 * GB, 72, 50 * GB, NVLINK5.format(400))),
    "gb300": Chip("cuda", ("NVIDIA GB300",), 279 * GB, 2500 * TERA, 5000 * TERA,
                  "NVIDIA GB300 NVL72 data sheet, a 72nd, halved: no sparsity", bandwidth=8000 * GB,
                  fabric=Fabric(900 * GB, 72, 100 * GB, NVLINK5.format(800))),
    "4090": Chip("cuda", ("NVIDIA GeForce RTX 4090",), 24 * GB, 165.2 * TERA, 330.3 * TERA,
                 "NVIDIA Ada architecture paper, sums in float32", bandwidth=1008 * GB,
                 fabric=Fabric(32 * GB, 8, 3 * GB, "PCIe 4.0 x16; a 25 Gb/s network")),
    "5090": Chip("cuda", ("NVIDIA GeForce RTX 5090",), 32 * GB, 209.5 * TERA, 419 * TERA,
                 "NVIDIA Blackwell architecture paper, sums in float32", bandwidth=1792 * GB,
                 fabric=Fabric(64 * GB, 8, 3 * GB, "PCIe 5.0 x16; a 25 Gb/s network")),
}
"""Google's and NVIDIA's data sheets, read in 2026."""


OPERANDS: dict[str, Operand] = {"fp32": "float32", "tf32": "tf32", "bf16": "bfloat16",
                                "fp8": "float8"}
"""Operands of the products, by a run's precision."""


def chip_of(device_kind: str) -> Chip | None:
    """Look a device up by what JAX calls it."""
    return next((chip for chip in CHIPS.values() if device_kind in chip.device_kinds), None)


@dataclass(frozen=True)
class Peak:
    """Best matmul rate of one device, in FLOP/s, and where the number comes from."""

    flop_s: float
    source: str

    def share(self, flop_s: float, devices: int = 1) -> float:
        """Share of the peak of so many devices that a rate of useful FLOPs reaches (MFU)."""
        return flop_s / (self.flop_s * devices)


def matmul_peak(operand: Operand = "float32", budget_s: float = 0.3) -> Peak:
    """Peak for products of operands of a dtype, summed in float32.

    Looked up in `CHIPS`, or measured on the first device: the fastest of the square matmuls that
    fit in `budget_s` seconds. bfloat16 stands in for float8 on chips without such products, and
    where a measured machine multiplies float32 faster than bfloat16, as CPUs without instructions
    for it do, float32: a program may always choose it.
    """
    kind = jax.devices()[0].device_kind
    chip = chip_of(kind)
    if chip is not None and operand not in ("float32", "tf32"):
        rate = chip.bf16 if operand == "bfloat16" else chip.fp8 or chip.bf16
        return Peak(rate, f"{kind}: {chip.source}")
    operands = (operand,) if operand in ("float32", "tf32") else ("bfloat16", "float32")
    size = 1024 if jax.default_backend() == "cpu" else 8192
    best, chosen = max((measure_matmul(size, one, budget_s), one) for one in operands)
    return Peak(best, f"{kind}: best {size}^3 {chosen} matmul of {budget_s} s, measured")


def measure_matmul(size: int, dtype: str, budget_s: float) -> float:
    """Highest rate, in FLOP/s, of `size`-square matmuls repeated for `budget_s` seconds.

    dtype: of the operands; tf32 is float32, multiplied as the machine is fastest.
    """
    draw = np.random.default_rng(0)
    kind, asked = ("float32", None) if dtype == "tf32" else (dtype, exact(dtype))
    a, b = (jnp.asarray(draw.random((size, size), np.float32), kind) for _ in range(2))
    product = jax.jit(lambda a, b: jnp.matmul(a, b, precision=asked,
                                              preferred_element_type=jnp.float32))
    product(a, b).block_until_ready()
    best, end = math.inf, time.perf_counter() + budget_s
    while (began := time.perf_counter()) < end:
        product(a, b).block_until_ready()
        best = min(best, time.perf_counter() - began)
    return 2 * size**3 / best
