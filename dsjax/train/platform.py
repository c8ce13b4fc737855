"""What this machine is, and every choice made for it: said in the header of each run."""

from __future__ import annotations

import ctypes
import os
import sys
from importlib.metadata import PackageNotFoundError, version

import jax
import jax.numpy as jnp

from dsjax.config.run import RunConfig
from dsjax.layers import backend as backends
from dsjax.layers.backend import Backend
from dsjax.numerics import gemm, products
from dsjax.numerics.products import Products

PRECISIONS: dict[str, Products] = {
    "fp32": products.FP32,
    "bf16": products.BF16,
    "fp8": gemm.FP8,
}
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "ml_dtypes", "grain")


def choose_backend(run: RunConfig) -> Backend:
    """The functions layers call on this machine, in the run's precision."""
    return backends.single(PRECISIONS[run.train.precision], jnp.dtype(run.train.activations))


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
    if sys.platform == "linux" and (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc"):
        ctypes.CDLL(None).malloc_trim(0)


def describe(run: RunConfig, backend: Backend) -> dict[str, str]:
    """The header of a run: devices, versions, precision and each choice made for the platform."""
    devices = jax.devices()
    kind = devices[0].device_kind
    huge = "hugetlb" in os.environ.get("GLIBC_TUNABLES", "")
    choices = {
        "devices": f"{len(devices)} x {kind} ({jax.default_backend()})",
        "processes": str(jax.process_count()),
        "versions": ", ".join(f"{name} {number}" for name, number in versions().items()),
        "precision": f"{backend.products.name} products, float32 sums, {backend.dtype} activations",
        "optimizer": f"AdamW, {run.optimizer.moments} moments, float32 masters",
        "attention": "blocks of 128 queries, probabilities made again in the backward pass",
        "experts": "dropless: one batched product over rows padded to 1.125 x the mean load, "
        "the rest in tiles",
        "remat": f"{run.place.remat}, {run.place.unroll} layers written out per scan step",
    }
    if jax.default_backend() == "cpu":
        state = "on" if huge else "off (set GLIBC_TUNABLES=glibc.malloc.hugetlb=1)"
        choices["huge pages"] = state
        is_plain = "xla_cpu_disable_loop_unrolling" in os.environ.get("XLA_FLAGS", "")
        choices["kernels"] = "LLVM does not unroll" if is_plain else "LLVM's defaults"
    return choices
