"""The header of a run: what this machine is, and every choice made for it."""

from __future__ import annotations

import os
import sys
from importlib.metadata import PackageNotFoundError, version

import jax

from dsjax.config.model import MoEConfig
from dsjax.config.run import RunConfig
from dsjax.layers.backend import Backend
from dsjax.optim import schedule
from dsjax.runtime import attention, precision, program_cache

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "ml_dtypes", "grain")


PRODUCTS = {"fp32": "fp32 products, at full precision",
            "tf32": "tf32 products, as the machine multiplies float32 fastest",
            "bf16": "bf16 products", "fp8": "fp8 products"}
"""Products of Linears, by the name of a precision."""


def versions() -> dict[str, str]:
    """Versions of the packages that numbers depend on."""
    found = {"python": sys.version.split()[0]}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    return found


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
        "precision": f"{PRODUCTS[backend.precision.name]}, float32 sums, "
        f"{backend.dtype} activations",
        "optimizer": f"AdamW, {run.optimizer.moments} moments, float32 masters",
        "rate": schedule.describe(run.learning_rate, run.train.steps),
        "attention": attention.describe(run, backend, devices[0]),
        **_experts(run.model.moe),
        "remat": f"{run.machine.remat}, {backend.unroll} layer{'s' * (backend.unroll > 1)} "
        "written out per scan step",
    }
    if run.precision.operand_bytes == 1:
        said = {"hopper": "products of 8-bit codes by a kernel, promoted every 128 in registers",
                "tpu": "products of 8-bit codes by a kernel, promoted every 128 on the chip",
                "codes": "products of 8-bit codes, scaled and summed in float32 every 128",
                "values": "emulated: exact products of what codes stand for, summed in float32"}
        choices["fp8"] = said[precision.fp8_operands(run.machine, devices[0])]
    if jax.default_backend() == "cpu":
        state = "on" if huge else "off (set GLIBC_TUNABLES=glibc.malloc.hugetlb=1)"
        choices["huge pages"] = state
        is_plain = "xla_cpu_disable_loop_unrolling" in os.environ.get("XLA_FLAGS", "")
        choices["kernels"] = "LLVM does not unroll" if is_plain else "LLVM's defaults"
    choices["programs"] = program_cache.describe()
    if (misfit := schedule.misfit(run.learning_rate, run.train.steps)) is not None:
        choices["warning"] = misfit
    return choices
