"""What this machine is, and every choice made for it: said in the header of each run."""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import os
import resource
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp

from dsjax.config.model import MoEConfig
from dsjax.config.run import MachineConfig, RunConfig
from dsjax.errors import UserError
from dsjax.layers import backend as backends
from dsjax.layers import remat
from dsjax.layers.backend import Backend
from dsjax.numerics import codes, gemm, precision
from dsjax.numerics.precision import Precision
from dsjax.optim import schedule
from dsjax.runtime import program_cache

PRECISIONS: dict[str, Precision] = {
    "fp32": precision.FP32,
    "bf16": precision.BF16,
    "fp8": gemm.FP8,
}
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # glibc's malloc.h
ROOM = 512 << 20  # bytes of heap beside a step's temporaries
CODES = gemm.precision(gemm.V3_1, codes.MATMUL)
HOPPER = 9  # the first CUDA capability whose tensor cores multiply E4M3 with float32 sums
Operands = Literal["hopper", "tpu", "codes", "values"]
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "ml_dtypes", "grain")


def choose_backend(run: RunConfig, device: jax.Device | None = None) -> Backend:
    """The functions layers call, in the run's precision; for this machine, or a device's."""
    precision = PRECISIONS[run.precision.matmul]
    if run.precision.matmul == "fp8":
        precision = fp8_products(fp8_operands(run.machine, device or jax.devices()[0]))
    backend = backends.single(precision, jnp.dtype(run.precision.activations))
    return dataclasses.replace(backend, remat=remat.policy(run.machine.remat),
                               unroll=run.machine.unroll)


@functools.cache
def fp8_products(operands: Operands) -> Precision:
    """FP8 products of these operands. (Pallas takes a second to import: only where it is used.)"""
    if operands == "hopper":
        from dsjax.kernels import hopper

        return gemm.precision(gemm.V3_1, hopper.MATMUL)
    if operands == "tpu":
        from dsjax.kernels import tpu

        return gemm.precision(gemm.V3_1, tpu.MATMUL)
    return CODES if operands == "codes" else gemm.FP8


def fp8_operands(machine: MachineConfig, device: jax.Device) -> Operands:
    """What FP8 products multiply on a device: 8-bit codes, or their values in bfloat16.

    Codes by the device's kernel, `hopper` or `tpu`, or by XLA's own products.
    """
    kernel: Literal["hopper", "tpu"] | None = None
    has_codes = False
    if device.platform == "gpu":
        capability = str(getattr(device, "compute_capability", ""))  # "9.0"; AMD: "gfx942"
        major = capability.partition(".")[0]
        has_codes = major.isdecimal() and int(major) >= HOPPER
        kernel = "hopper" if has_codes and int(major) == HOPPER else None
    elif "7x" in device.device_kind:
        kernel = "tpu"
    if machine.fp8_matmul == "kernel" and kernel is None:
        raise UserError(f"--machine.fp8-matmul kernel is for Hopper GPUs and TPU7x, and this is "
                        f"{device.device_kind}; use auto, codes or values")
    if machine.fp8_matmul in ("codes", "values"):
        return machine.fp8_matmul
    return kernel or ("codes" if has_codes else "values")


def versions() -> dict[str, str]:
    """Versions of what numbers depend on."""
    found = {"python": sys.version.split()[0]}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    return found


def release_memory() -> None:
    """Give back to the system what glibc keeps after a compilation (some 400 MiB for a step)."""
    if is_glibc():
        ctypes.CDLL(None).malloc_trim(0)


def dispatch_inline() -> None:
    """Have the CPU run a program in the thread that calls it; to be said before JAX has devices.

    Otherwise a step may begin before the temporaries of the one before are freed, and needs memory
    of its own. Programs of several devices are dispatched as ever.
    """
    jax.config.update("jax_cpu_enable_async_dispatch", False)


def keep_memory() -> None:
    """After a first step: give back what compiling took, and keep what a step's temporaries take.

    XLA allocates them as one block and frees it after each step. glibc maps such a block and gives
    it back, so that every page is faulted in and zeroed anew: 0.1 to 1 s for 2 GiB. From here on
    they come from the heap, which is never trimmed by itself. It is extended first by more than
    they were (nothing is resident until used), so that what else is allocated meanwhile finds room
    beside them and they lie in the same place step after step.
    """
    if not is_glibc() or jax.default_backend() != "cpu":
        return
    release_memory()
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    libc.mallopt(M_MMAP_MAX, 0)
    libc.mallopt(M_TRIM_THRESHOLD, -1)
    libc.free(libc.malloc(peak - resident + ROOM))


def is_glibc() -> bool:
    """Whether memory is allocated by glibc, whose calls these are."""
    return sys.platform == "linux" and (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc")


def _experts(moe: MoEConfig | None) -> dict[str, str]:
    if moe is None:
        return {}
    kept = "dropless" if moe.capacity_factor is None else (
        f"at most {moe.capacity_factor:g} x the mean load each, the rest dropped")
    return {"experts": f"{kept}: one batched product over rows padded to 1.125 x the mean load, "
                       "the rest in tiles"}


def describe(run: RunConfig, backend: Backend) -> dict[str, str]:
    """The header of a run: devices, versions, precision and each choice made for the platform."""
    devices = jax.devices()
    kind = devices[0].device_kind
    huge = "hugetlb" in os.environ.get("GLIBC_TUNABLES", "")
    choices = {
        "devices": f"{len(devices)} x {kind} ({jax.default_backend()})",
        "processes": str(jax.process_count()),
        "versions": ", ".join(f"{name} {number}" for name, number in versions().items()),
        "precision": f"{backend.precision.name} products, float32 sums, "
        f"{backend.dtype} activations",
        "optimizer": f"AdamW, {run.optimizer.moments} moments, float32 masters",
        "rate": schedule.describe(run.learning_rate, run.train.steps),
        "attention": "blocks of 128 queries, probabilities made again in the backward pass",
        **_experts(run.model.moe),
        "remat": f"{run.machine.remat}, {run.machine.unroll} layer{'s' * (run.machine.unroll > 1)} "
        "written out per scan step",
    }
    if run.precision.matmul == "fp8":
        said = {"hopper": "products of 8-bit codes by a kernel, promoted every 128 in registers",
                "tpu": "products of 8-bit codes by a kernel, promoted every 128 on the chip",
                "codes": "products of 8-bit codes, scaled and summed in float32 every 128",
                "values": "emulated: exact products of what codes stand for, summed in float32"}
        choices["fp8"] = said[fp8_operands(run.machine, devices[0])]
    if jax.default_backend() == "cpu":
        state = "on" if huge else "off (set GLIBC_TUNABLES=glibc.malloc.hugetlb=1)"
        choices["huge pages"] = state
        is_plain = "xla_cpu_disable_loop_unrolling" in os.environ.get("XLA_FLAGS", "")
        choices["kernels"] = "LLVM does not unroll" if is_plain else "LLVM's defaults"
    choices["programs"] = program_cache.describe()
    if (misfit := schedule.misfit(run.learning_rate, run.train.steps)) is not None:
        choices["warning"] = misfit
    return choices
