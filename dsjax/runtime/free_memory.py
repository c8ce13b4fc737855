"""Memory that is free on the machine that this process runs on, and whose limit it is.

An accelerator says of itself what it has. On a CPU, devices share what is least of the memory that
the system could give, what the process's control groups leave it, and what its own limits do.
"""

from __future__ import annotations

import resource
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax

PAGE = resource.getpagesize()
RECLAIMABLE = ("inactive_file", "active_file", "slab_reclaimable")
KEPT_FREE = 2**60  # bytes: control groups write "no limit" as a number above this


@dataclass(frozen=True)
class Room:
    """Bytes that are free, whose limit that is, and how many devices of this process share them."""

    free: int
    whose: str
    devices: int = 1
    is_host: bool = True


def of(devices: Sequence[jax.Device]) -> Room | None:
    """Return the memory free on this process's devices of a kind; None if a device does not say."""
    first = devices[0]
    if first.platform == "cpu":
        found = host()
        return found and Room(found.free, found.whose, len(devices))
    said = first.memory_stats() or {}
    if "bytes_limit" not in said:
        return None
    free = said["bytes_limit"] - said.get("bytes_in_use", 0)
    return Room(free, f"free on a {first.device_kind}", is_host=False)


def host(root: Path = Path("/")) -> Room | None:
    """Return the memory this process can still be given; None where the system does not say.

    root: where its files are, for tests.
    """
    return min([*_system(root), *_groups(root), *_own(root)], key=lambda room: room.free,
               default=None)


def _system(root: Path) -> Iterator[Room]:
    """Yield what the system has available without taking from others, free swap included."""
    said = {}
    for line in _read(root / "proc/meminfo").splitlines():
        name, _, rest = line.partition(":")
        said[name] = rest.split()
    if "MemAvailable" in said:
        free = sum(int(said[name][0]) for name in ("MemAvailable", "SwapFree") if name in said)
        yield Room(free * 1024, "available on this machine")


def _groups(root: Path) -> Iterator[Room]:
    """Yield what is left to this process in each of its control groups and of those above."""
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, inside = line.split(":", 2)
        is_second = not controllers
        if not is_second and "memory" not in controllers.split(","):
            continue
        top = root / "sys/fs/cgroup" / ("" if is_second else "memory")
        names = (("memory.max", "memory.current", "") if is_second else
                 ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_"))
        folder = top / inside.strip("/")
        for at in (folder, *folder.parents):
            yield from _group(at, *names)
            if at == top:
                break


def _group(folder: Path, limit: str, usage: str, prefix: str) -> Iterator[Room]:
    """Yield what a group has left, pages of files that can be reclaimed included."""
    most, used = _read(folder / limit).strip(), _read(folder / usage).strip()
    if most.isdecimal() and used.isdecimal() and int(most) < KEPT_FREE:
        stat = dict(line.split() for line in _read(folder / "memory.stat").splitlines())
        kept = sum(int(stat.get(prefix + name, 0)) for name in RECLAIMABLE)
        free = min(int(most) - int(used) + kept, int(most))
        yield Room(max(free, 0), f"left of the {int(most) / 1e9:.1f} GB of its control group "
                                 "(a container's or a job's limit)")


def _own(root: Path) -> Iterator[Room]:
    """Yield what the limits of this process leave of its address space and its data."""
    pages = _read(root / "proc/self/statm").split()
    for name, at, flag in (("RLIMIT_AS", 0, "v"), ("RLIMIT_DATA", 5, "d")):
        most = resource.getrlimit(getattr(resource, name))[0]
        if most != resource.RLIM_INFINITY and len(pages) > at:
            yield Room(max(most - int(pages[at]) * PAGE, 0),
                       f"left of the {most / 1e9:.1f} GB that `ulimit -{flag}` allows")


def _read(path: Path) -> str:
    """Text of a system's file; none where it is not."""
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
