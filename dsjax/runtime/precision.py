"""The precision of a run on this machine: which products, by which kernel."""

from __future__ import annotations

import functools
from typing import Literal

import jax

from dsjax.config.machine import MachineConfig
from dsjax.errors import UserError
from dsjax.numerics import codes, gemm
from dsjax.numerics.precision import BF16, FP32, TF32, Precision

HOPPER = 9  # the first CUDA capability whose tensor cores multiply E4M3 with float32 sums
Operands = Literal["hopper", "tpu", "codes", "values"]
CODES = gemm.precision(gemm.V3_1, codes.MATMUL)


def precision_of(name: str, machine: MachineConfig, device: jax.Device) -> Precision:
    """The precision called `fp32`, `tf32`, `bf16` or `fp8`, for a device."""
    if name == "fp8":
        return fp8(fp8_operands(machine, device))
    return {"fp32": FP32, "tf32": TF32, "bf16": BF16}[name]


@functools.cache
def fp8(operands: Operands) -> Precision:
    """FP8 products of these operands. (Pallas takes a second to import: only where it is used.)"""
    if operands == "hopper":
        from dsjax.kernels import hopper

        return gemm.precision(gemm.V3_1, hopper.MATMUL)
    if operands == "tpu":
        from dsjax.kernels import tpu

        return gemm.precision(gemm.V3_1, tpu.MATMUL)
    return CODES if operands == "codes" else gemm.FP8


def cuda_capability(device: jax.Device) -> int | None:
    """Major number of an NVIDIA GPU's compute capability; None for other devices."""
    if device.platform != "gpu":
        return None
    major = str(getattr(device, "compute_capability", "")).partition(".")[0]  # "9.0"; AMD: "gfx942"
    return int(major) if major.isdecimal() else None


def fp8_operands(machine: MachineConfig, device: jax.Device) -> Operands:
    """Operands that FP8 products multiply on a device: 8-bit codes, or their values in bfloat16.

    Codes by the device's kernel, `hopper` or `tpu`, or by XLA's own products.
    """
    kernel: Literal["hopper", "tpu"] | None = None
    capability = cuda_capability(device)
    has_codes = capability is not None and capability >= HOPPER
    if capability == HOPPER:
        kernel = "hopper"
    elif "7x" in device.device_kind:
        kernel = "tpu"
    if machine.fp8_matmul == "kernel" and kernel is None:
        raise UserError(f"--machine.fp8-matmul kernel is for Hopper GPUs and TPU7x, and this is "
                        f"{device.device_kind}; use auto, codes or values")
    if machine.fp8_matmul in ("codes", "values"):
        return machine.fp8_matmul
    return kernel or ("codes" if has_codes else "values")
