"""Several processes as one machine: where the coordinator is, and joining it (jax.distributed).

Every process runs the same command. Who it is, and where the first one listens, is found in this
order: flags --coordinator HOST:PORT --processes N --process I; the same in DSJAX_COORDINATOR,
DSJAX_PROCESSES and DSJAX_PROCESS (Kubernetes, see launch/gke-jobset.yaml); Open MPI, whose mpirun
may run inside an allocation of Slurm; Slurm; a TPU pod, which is JAX's own to read. Open MPI 5 does
not say where its first process is, so that on several nodes it needs the flags. A variable that is
empty is as one that is not set.

The coordinator listens on the address that was given only: anyone who reaches it can stop the run.
Processes of one machine meet on its loopback.

GPUs: under Slurm and Open MPI every process gets one, by its number on the host. That is
right where a host has several processes; one that has the host to itself takes all of them, and so
does one that was told by flags or environment.
"""

from __future__ import annotations

import ipaddress
import os
import re
import socket
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import jax

from dsjax.errors import UserError, say
from dsjax.parallel import meet

LOOPBACK = ("localhost", "ip6-localhost", "ip6-loopback")
WAIT_S = 120
"""Seconds that a process waits for the others to appear."""
PORTS = 61440, 4096
"""First of the ports that launchers' job numbers choose from, and how many."""
BIND = "JAX_COORDINATOR_BIND_ADDRESS"


@dataclass(frozen=True)
class Launch:
    """Way of this process to join the others; a field that is None is left to JAX to find."""

    source: str
    coordinator: str | None = None
    processes: int | None = None
    process: int | None = None
    gpus: tuple[int, ...] | None = None


def find(env: Mapping[str, str], coordinator: str | None = None, processes: int | None = None,
         process: int | None = None) -> Launch | None:
    """Find from flags or environment how processes belong together; None for a single one."""
    if any(word is not None for word in (coordinator, processes, process)):
        typed = [None if number is None else str(number) for number in (processes, process)]
        return _explicit("flags", coordinator, typed[0], typed[1],
                         ("--coordinator", "--processes", "--process"))
    env = {name: value.strip() for name, value in env.items() if value.strip()}
    names = ("DSJAX_COORDINATOR", "DSJAX_PROCESSES", "DSJAX_PROCESS")
    if any(name in env for name in names):
        said = [env.get(name) for name in names]
        return _explicit("environment", said[0], said[1], said[2], names)
    if _count(env, "OMPI_COMM_WORLD_SIZE") > 1:
        return _open_mpi(env)
    if "SLURM_PROCID" in env and _count(env, "SLURM_NTASKS") > 1:
        return _slurm(env)
    if "," in env.get("TPU_WORKER_HOSTNAMES", "") and "TPU_WORKER_ID" in env:
        return _tpu_pod(env)
    return None


def _whole(text: str, name: str, least: int) -> int:
    """A whole number as typed, of digits alone."""
    if re.fullmatch(r"[0-9]{1,18}", text) and int(text) >= least:
        return int(text)
    raise UserError(f"{name} {text[:40]} is not a whole number from {least} on; give one")


def _explicit(source: str, coordinator: str | None, processes: str | None, process: str | None,
              names: tuple[str, str, str]) -> Launch:
    if not (coordinator and processes and process):
        raise UserError(f"several processes need all of {', '.join(names)}; give the ones missing")
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isascii() or not port.isdigit() or re.search(r"\s|/", host):
        raise UserError(f"{names[0]} {coordinator} is not HOST:PORT; use for instance node0:12345")
    if ":" in host and not (host.startswith("[") and host.endswith("]")):
        raise UserError(f"{names[0]} {coordinator} is not HOST:PORT; an IPv6 address stands in "
                        "brackets, as [::1]:12345")
    if len(port) > 9 or not 1 <= int(port) <= 65535:
        raise UserError(f"{names[0]} {coordinator[:200]} has the port {port[:40]}; use one from 1 "
                        "to 65,535")
    count = _whole(processes, names[1], 1)
    number = _whole(process, names[2], 0)
    if number >= count:
        raise UserError(
            f"{names[2]} {process} is not a number from 0 below {names[1]} {processes}; "
            "number the processes from 0"
        )
    return Launch(source, coordinator, count, number)


def _count(env: Mapping[str, str], name: str) -> int:
    return _number(env, name) if name in env else 1


def _number(env: Mapping[str, str], name: str) -> int:
    """A launcher's variable, which has to be a whole number."""
    text = env.get(name)
    if text is None or not re.fullmatch("[0-9]{1,9}", text):
        what = "is not set" if text is None else f"is {text[:40]!r}"
        raise UserError(f"the launcher's {name} {what} where a whole number should be; unset its "
                        "variables to train in one process, or give --coordinator HOST:PORT "
                        "--processes N --process I")
    return int(text)


def _slurm(env: Mapping[str, str]) -> Launch | None:
    """Of a step that srun started; a batch script itself is no step and trains alone."""
    is_step = {"SLURM_STEP_ID", "SLURM_STEPID", "SLURM_STEP_NODELIST"} & env.keys()
    if not is_step or env.get("SLURM_STEP_NUM_TASKS") == "1":  # salloc's shell is a step of one
        say(f"this allocation has {env['SLURM_NTASKS']} tasks, but the command was not started by "
            "srun: it trains in one process; `srun dsjax train ...` trains in all of them")
        return None
    nodes = env.get("SLURM_STEP_NODELIST", "")
    count, number = _number(env, "SLURM_NTASKS"), _number(env, "SLURM_PROCID")
    head = re.match(r"([^,\[\]]+)(?:\[(\d+))?", nodes)  # node7; node7,node9; node[007-9,12],x
    if head is None:
        raise UserError(f"the launcher's SLURM_STEP_NODELIST is {nodes[:40]!r} where names of "
                        "nodes should be; give --coordinator HOST:PORT --processes N --process I")
    host = head[1] + (head[2] or "") if re.search(r"[,\[]", nodes) else "localhost"
    counts = env.get("SLURM_STEP_TASKS_PER_NODE", "")  # such as 1(x16), or 4(x2),1
    is_alone = re.fullmatch(r"1(\(x\d+\))?", counts) is not None
    gpus = all_gpus(env) if is_alone else (_number(env, "SLURM_LOCALID"),)
    return _launched("Slurm", host, _number(env, "SLURM_JOB_ID"), count, number, gpus)


def _open_mpi(env: Mapping[str, str]) -> Launch:
    size, rank = _number(env, "OMPI_COMM_WORLD_SIZE"), _number(env, "OMPI_COMM_WORLD_RANK")
    local = _number(env, "OMPI_COMM_WORLD_LOCAL_SIZE")
    # OMPI_MCA_orte_hnp_uri of Open MPI 4: 1531576320.0;tcp://10.96.0.1,10.148.0.1:34911
    # or 1314521088.0;tcp6://[fe80::b9b,2620:10d::2]:43370
    head = re.match(r"(\d+)\..*?;tcp(?:://([^,:]+)|6://\[([^,\]]+))",
                    env.get("OMPI_MCA_orte_hnp_uri", ""))
    if head is None and local != size:
        raise UserError(
            "this Open MPI does not say where its first process is; add --coordinator HOST:PORT "
            "--processes $OMPI_COMM_WORLD_SIZE --process $OMPI_COMM_WORLD_RANK"
        )
    job = int(head[1]) // 4096 if head else zlib.crc32(env.get("PMIX_NAMESPACE", "").encode())
    gpus = None
    if head is not None:
        gpus = all_gpus(env) if local == 1 else (_number(env, "OMPI_COMM_WORLD_LOCAL_RANK"),)
    first = "localhost" if head is None or local == size else head[2] or f"[{head[3]}]"
    return _launched("Open MPI", first, job, size, rank, gpus)


def _launched(source: str, host: str, job: int, count: int, number: int,
              gpus: tuple[int, ...] | None) -> Launch:
    """Processes of a launcher's job; its number chooses the port, on which all agree."""
    if number >= count:
        raise UserError(f"{source} gives this process the number {number} of {count}; start it "
                        "anew, or give --coordinator HOST:PORT --processes N --process I")
    return Launch(source, f"{host}:{PORTS[0] + job % PORTS[1]}", count, number, gpus)


def _tpu_pod(env: Mapping[str, str]) -> Launch:
    workers, number = env["TPU_WORKER_HOSTNAMES"].split(","), _number(env, "TPU_WORKER_ID")
    if number >= len(workers):
        raise UserError(f"TPU_WORKER_ID={number} is not below the {len(workers)} workers of "
                        "TPU_WORKER_HOSTNAMES; unset both to train in one process")
    return Launch("TPU pod")


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
    jax.config.update("jax_enable_preemption_service", True)
    bind = None
    if launch.coordinator is not None:
        assert launch.processes is not None, "found with the coordinator"
        assert launch.process is not None, "found with the coordinator"
        bind = os.environ.get(BIND) or _bind(launch.coordinator, launch.process)
        meet.wait(launch.coordinator, launch.processes, launch.process, WAIT_S, bind)
    try:
        jax.distributed.initialize(
            launch.coordinator, launch.processes, launch.process, launch.gpus,
            cluster_detection_method=None if launch.coordinator is None else "deactivate",
            coordinator_bind_address=bind, initialization_timeout=WAIT_S,
            heartbeat_timeout_seconds=WAIT_S,
        )
    except (RuntimeError, ValueError) as error:
        where = launch.coordinator or launch.source
        raise UserError(
            f"the other processes were not found at {where} ({str(error).splitlines()[0][:200]}); "
            "start all of them within two minutes, each with its own number"
        ) from error


def _bind(coordinator: str, process: int) -> str:
    """Return the address at which process 0 listens: the one given.

    A host may know its own name as a loopback address (Debian's 127.0.1.1), which others do not
    reach; where they reach it is then not to be found out: it listens everywhere, and says so.
    """
    host, port = meet.address(coordinator)
    name = host.lower().rstrip(".")
    if process or name in LOOPBACK or name.startswith("localhost.") or name.endswith(".localhost"):
        return coordinator
    places = [place[0] for *_, place in meet.resolve(host, port)]
    is_name = host not in places
    if is_name and all(ipaddress.ip_address(p.partition("%")[0]).is_loopback for p in places):
        say(f"{host} is {places[0]} on this machine itself, so that the coordinator listens on "
            f"every interface; give an address instead, or {BIND}=ADDRESS:{port}")
        return f"{'[::]' if socket.has_dualstack_ipv6() else '0.0.0.0'}:{port}"
    return coordinator
