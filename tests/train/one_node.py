"""A Slurm of one node, this machine, for the time of a test: munged, slurmctld and slurmd.

Everything it writes lies in one folder, and it serves the user who starts it. Its eight GPUs are
empty files, so that the batch script of launch/ runs as it is.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "sinfo")
MISSING = "Slurm (Debian's slurm-wlm and munge) is not installed"
PATIENCE_S = 60
CONFIG = """
ClusterName=dsjax
SlurmctldHost=localhost
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
SlurmUser={user}
SlurmdUser={user}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
FirstJobId={job}
GresTypes=gpu
NodeName=localhost CPUs={cores} Gres=gpu:8 State=UNKNOWN
PartitionName=all Nodes=localhost Default=YES MaxTime=INFINITE State=UP
"""


def is_installed() -> bool:
    """True where all of Slurm's programs are here."""
    return all(_found(name) for name in PROGRAMS)


@contextlib.contextmanager
def cluster(folder: Path) -> Iterator[dict[str, str]]:
    """Run the daemons while the block runs; give the environment in which jobs are submitted."""
    for name in ("state", "spool"):
        (folder / name).mkdir()
    config = folder / "slurm.conf"
    config.write_text(CONFIG.format(
        folder=folder, user=getpass.getuser(), ports=_free_ports(2), cores=os.cpu_count(),
        job=1 + secrets.randbelow(60_000)))
    for i in range(8):
        (folder / f"gpu{i}").touch()
    (folder / "gres.conf").write_text(f"NodeName=localhost Name=gpu File={folder}/gpu[0-7]\n")
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(1024))
    key.chmod(0o600)
    munged = [_found("munged"), "--force", "--foreground",
              *(f"--{what}={folder}/munge.{end}" for what, end in (
                  ("socket", "socket"), ("key-file", "key"), ("pid-file", "pid"),
                  ("log-file", "log"), ("seed-file", "seed")))]
    env = os.environ | {"SLURM_CONF": str(config),
                        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    daemons: list[subprocess.Popen[bytes]] = []
    try:
        for command in (munged, [_found("slurmctld"), "-D"],
                        [_found("slurmd"), "-D", "-N", "localhost"]):
            with (folder / f"{Path(command[0]).name}.said").open("wb") as log:
                daemons.append(subprocess.Popen(command, env=env, stdout=log, stderr=log))
            if len(daemons) == 1:
                _wait_until(lambda: (folder / "munge.socket").exists(), folder)
        _wait_until(lambda: "idle" in _states(env), folder)
        yield env
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
            daemon.wait()


def _found(name: str) -> str:
    return shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin") or ""


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        found = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in found:
            one.bind(("localhost", 0))
        return [one.getsockname()[1] for one in found]


def _states(env: dict[str, str]) -> str:
    """The states of the nodes; empty while nobody answers."""
    asked = subprocess.run([_found("sinfo"), "-h", "-o", "%t"], env=env, capture_output=True,
                           text=True)
    return asked.stdout


def _wait_until(is_so, folder: Path) -> None:
    until = time.monotonic() + PATIENCE_S
    while not is_so():
        said = "\n".join(p.read_text() for p in sorted(folder.glob("*.said")))
        assert time.monotonic() < until, f"Slurm is not up after {PATIENCE_S} seconds:\n{said}"
        time.sleep(0.1)
