"""Machines to compile for by name, though none is here: `v5p:8x16x16`, `h200:256x8`.

TPUs are named as JAX names topologies: a generation, and the chips along each axis of its torus.
GPUs are named by a kind, the nodes, and the GPUs of a node. The compilers come as packages, the
extras tpu-aot (libtpu) and gpu-aot (the CUDA plugin and NVIDIA's assembler); neither wants the
machine.
"""

from __future__ import annotations

import importlib.util
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dsjax.errors import UserError
from dsjax.runtime.hardware import CHIPS, Chip

KINDS = ("v4", "v5e", "v5p", "v6e", "tpu7x", "h100", "h800", "h200")
"""Chips whose compilers come as packages."""


@dataclass(frozen=True)
class Target:
    """A machine to compile for."""

    name: str  # as it was given
    kind: str  # of KINDS
    shape: tuple[int, ...]  # chips along each axis; nodes and GPUs of a node

    @property
    def chip(self) -> Chip:
        """Chip of each device."""
        return CHIPS[self.kind]

    @property
    def devices(self) -> int:
        """Devices of the whole machine."""
        return math.prod(self.shape) * self.chip.cores


def parse(name: str) -> Target:
    """A target from its name, refused in a sentence."""
    kind, _, sizes = name.lower().partition(":")
    if kind not in KINDS or not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", sizes):
        raise UserError(
            f"{name!r} is no machine; use {', '.join(KINDS)} and a size, as in v5p:8x16x16 (chips "
            "along each axis) or h200:256x8 (nodes x GPUs)"
        )
    shape = tuple(map(int, sizes.split("x")))
    if CHIPS[kind].platform == "cuda" and len(shape) != 2:
        raise UserError(f"{name!r} needs two sizes, nodes x GPUs of a node, as in {kind}:256x8")
    if len(shape) > CHIPS[kind].axes:
        raise UserError(f"{name!r} has {len(shape)} axes, and chips of {kind} form a torus of "
                        f"{CHIPS[kind].axes}: use as many sizes, as in "
                        f"{kind}:{'x'.join(['4'] * CHIPS[kind].axes)}")
    return Target(name, kind, shape)


def devices(target: Target) -> list[Any]:
    """The devices of a machine that is not here, for a mesh; only a compiler can use them."""
    from jax.experimental import topologies

    require(target)
    try:
        if target.chip.platform == "cuda":
            nodes, each = target.shape
            found = topologies.get_topology_desc(
                platform="cuda", topology_name=target.kind, topology=f"1x{nodes}x{each}",
                target_config=gpu_description(target.kind))
        else:
            for key, value in _tpu_environment(target).items():
                os.environ.setdefault(key, value)
            shape = "x".join(map(str, target.shape))
            found = topologies.get_topology_desc(
                platform="tpu", topology_name=f"{target.kind}:{shape}")
    except Exception as error:  # of several kinds, by platform
        said = str(error).splitlines()[0]
        raise UserError(f"the compiler knows no {target.name}: {said}") from error
    return list(found.devices)


def require(target: Target) -> None:
    """Refuse a target whose compiler is not installed, with the command that installs it."""
    extra, module = (("gpu-aot", "jax_plugins.xla_cuda12") if target.chip.platform == "cuda"
                     else ("tpu-aot", "libtpu"))
    if not is_installed(module):
        raise UserError(f"compiling for {target.kind} needs its compiler, which is not installed: "
                        f"pip install 'dsjax[{extra}]'")


def is_installed(module: str) -> bool:
    """Return True if a module can be found; one in a package that is absent cannot."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _tpu_environment(target: Target) -> Mapping[str, str]:
    """Return the environment that libtpu asks for to compile: no metadata server, one host."""
    return {
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # several may compile at once: none holds a chip
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_LOG_DIR": "disabled",
        "TPU_WORKER_ID": "0",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_ACCELERATOR_TYPE": f"{target.kind}-8",
    }


def gpu_description(kind: str) -> str:
    """A Hopper GPU as XLA describes one, for the compiler."""
    chip = CHIPS[kind]
    return f"""
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  shared_memory_per_core: 233472 shared_memory_per_block_optin: 232448 threads_per_core_limit: 2048
  core_count: {chip.multiprocessors} fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535
  block_dim_limit_z: 65535 thread_dim_limit_x: 1024 thread_dim_limit_y: 1024
  thread_dim_limit_z: 64 registers_per_core_limit: 65536 registers_per_block_limit: 65536
  memory_bandwidth: {chip.bandwidth} l2_cache_size: 52428800 clock_rate_ghz: 1.98
  device_memory_size: {chip.memory_for_xla} device_vendor: "NVIDIA Corporation"
  name: "NVIDIA {kind.upper()}"
  cuda_compute_capability {{ major: 9 feature_extension: ACCELERATED_FEATURES }}
  platform_version: "Compute Capability 9.0a" device_address_bits: 64
  pcie_bandwidth: 34359738368 ecc_enabled: true
  driver_version: "12.9.0" runtime_version: "12.9.0" compile_time_toolkit_version: "12.9.0"
  dnn_version: "9.10.0" device_interconnect_info {{ active_links: 18 }}
}}
platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 10 }}
device_description_str: "NVIDIA {kind.upper()}"
"""
