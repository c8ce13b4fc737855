"""Several processes as one machine: where the coordinator is, and joining it (jax.distributed).

Every process runs the same command. Who it is, and where the first one listens, is found in this
order: flags --coordinator HOST:PORT --processes N --process I; the same in DSJAX_COORDINATOR,
DSJAX_PROCESSES and DSJAX_PROCESS (Kubernetes, see launch/gke-jobset.yaml); Slurm; Open MPI; a TPU
pod. Slurm, Open MPI 4 and TPU pods are JAX's own to read; Open MPI 5 no longer says where its first
process is, so that on several nodes it needs the flag.

Which GPUs: under Slurm and Open MPI JAX gives every process one, by its number on the host. That is
right where a host has several processes; one that has the host to itself takes all of them, and so
does one that was told by flags or environment.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import jax

from dsjax.errors import UserError

WAIT_S = 120
"""Seconds that a process waits for the others to appear."""


@dataclass(frozen=True)
class Launch:
    """How this process joins the others; what is None is left to JAX to find."""

    source: str
    coordinator: str | None = None
    processes: int | None = None
    process: int | None = None
    gpus: tuple[int, ...] | None = None


def find(env: Mapping[str, str], coordinator: str | None = None, processes: str | None = None,
         process: str | None = None) -> Launch | None:
    """How the environment, or flags, say that processes belong together; None for a single one."""
    flags = (coordinator, processes, process)
    if any(flags):
        return _explicit("flags", *flags, ("--coordinator", "--processes", "--process"))
    names = ("DSJAX_COORDINATOR", "DSJAX_PROCESSES", "DSJAX_PROCESS")
    if any(name in env for name in names):
        said = [env.get(name) for name in names]
        return _explicit("environment", said[0], said[1], said[2], names)
    if int(env.get("SLURM_NTASKS", "1")) > 1 and "SLURM_PROCID" in env:
        counts = env.get("SLURM_STEP_TASKS_PER_NODE", "")  # such as 1(x16), or 4(x2),1
        is_alone = re.fullmatch(r"1(\(x\d+\))?", counts) is not None
        return Launch("Slurm", gpus=all_gpus(env) if is_alone else None)
    if int(env.get("OMPI_COMM_WORLD_SIZE", "1")) > 1:
        return _open_mpi(env)
    if "," in env.get("TPU_WORKER_HOSTNAMES", "") and "TPU_WORKER_ID" in env:
        return Launch("TPU pod")
    return None


def _explicit(source: str, coordinator: str | None, processes: str | None, process: str | None,
              names: tuple[str, str, str]) -> Launch:
    if not (coordinator and processes and process):
        raise UserError(f"several processes need all of {', '.join(names)}; give the ones missing")
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit():
        raise UserError(f"{names[0]} {coordinator} is not HOST:PORT; use for instance node0:12345")
    if not (processes.isdigit() and process.isdigit() and int(process) < int(processes)):
        raise UserError(
            f"{names[2]} {process} is not a number from 0 below {names[1]} {processes}; "
            "number the processes from 0"
        )
    return Launch(source, coordinator, int(processes), int(process))


def _open_mpi(env: Mapping[str, str]) -> Launch:
    if "OMPI_MCA_orte_hnp_uri" in env:
        is_alone = env.get("OMPI_COMM_WORLD_LOCAL_SIZE") == "1"
        return Launch("Open MPI", gpus=all_gpus(env) if is_alone else None)
    size, rank = env["OMPI_COMM_WORLD_SIZE"], env["OMPI_COMM_WORLD_RANK"]
    if env.get("OMPI_COMM_WORLD_LOCAL_SIZE") != size:
        raise UserError(
            "this Open MPI does not say where its first process is; add --coordinator HOST:PORT "
            "--processes $OMPI_COMM_WORLD_SIZE --process $OMPI_COMM_WORLD_RANK"
        )
    job = zlib.crc32(env.get("PMIX_NAMESPACE", "").encode())
    return Launch("Open MPI", f"localhost:{61440 + job % 4096}", int(size), int(rank))


def all_gpus(env: Mapping[str, str], devices: Path = Path("/dev")) -> tuple[int, ...] | None:
    """Numbers of the NVIDIA GPUs that this process may see; None where there are none."""
    visible = env.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        count = sum(re.fullmatch(r"nvidia\d+", p.name) is not None for p in devices.iterdir())
    else:
        count = len([name for name in visible.split(",") if name])
    return tuple(range(count)) or None


def join(launch: Launch | None) -> None:
    """Become one of several processes; call it before anything asks JAX for its devices."""
    if launch is None:
        return
    method = {"Slurm": "slurm", "Open MPI": "ompi"}.get(launch.source)
    if launch.coordinator is not None:
        method = "deactivate"  # nothing is left to find
    jax.config.update("jax_enable_preemption_service", True)
    try:
        jax.distributed.initialize(
            launch.coordinator, launch.processes, launch.process, launch.gpus,
            cluster_detection_method=method, initialization_timeout=WAIT_S,
            heartbeat_timeout_seconds=WAIT_S,
        )
    except (RuntimeError, ValueError) as error:
        where = launch.coordinator or launch.source
        raise UserError(
            f"the other processes were not found at {where} ({str(error).splitlines()[0][:200]}); "
            "start all of them within two minutes, each with its own number"
        ) from error
