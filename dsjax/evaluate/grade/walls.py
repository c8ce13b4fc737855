"""Walls that a process puts around itself before it runs what it does not trust.

Four, and each is granted to every user, in containers too, where user namespaces often are not:
no new privileges and no capabilities (root is nobody special in there); Landlock, by which files
are opened only below the paths given; a filter of system calls (dsjax.evaluate.grade.syscalls), by
which there is no socket, no new process, no other program, no signal to another process; and
limits of CPU, address space, size of files and open files.

All are taken on before the first line that is not trusted, and none can be taken off again. A
process that the filter keeps from forking is killed by one signal, with all its threads.

Not held: the metadata of files (`os.stat` tells names, sizes and times of files that cannot be
opened); the load of the machine, seen by timing; a flaw in the kernel.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import resource
import signal
import struct
import sys
import sysconfig
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from dsjax.evaluate.grade import syscalls

# linux/landlock.h; the rights grew with the versions of its interface.
WRITE_FILE, READ_FILE, READ_DIR, REMOVE_FILE, MAKE_REG, TRUNCATE = (
    1 << 1, 1 << 2, 1 << 3, 1 << 5, 1 << 8, 1 << 14)
OF_A_FILE = WRITE_FILE | READ_FILE | TRUNCATE
READ = READ_FILE | READ_DIR
WRITE = READ | WRITE_FILE | REMOVE_FILE | MAKE_REG | TRUNCATE  # no folders, links, pipes, devices
RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
"""Version: number of rights; later ones have as many as 5."""
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
FOREIGN = ("site-packages", "dist-packages")
BESIDE = ("/etc/ld.so.cache", "/etc/localtime", "/usr/share/zoneinfo", "/dev/urandom")


class Grant(NamedTuple):
    """Rights on a path and, where it is a folder, on all below it."""

    path: str
    rights: int


def reason() -> str | None:
    """Return a sentence that says why this machine has no such walls; None where it has."""
    if sys.platform != "linux" or platform.machine() not in syscalls.ARCHITECTURES:
        return (f"untrusted code is held by Linux on {' or '.join(syscalls.ARCHITECTURES)}, and "
                f"this is {sys.platform} on {platform.machine()}; run it there, as in a container")
    if version() < 1:
        return ("untrusted code is kept from files by Landlock, which this kernel lacks "
                f"({platform.release()}); take Linux 5.13 or newer with landlock among its lsm=")
    return None


def version() -> int:
    """Return the version of the kernel's Landlock; below 1 without it."""
    libc = ctypes.CDLL(None, use_errno=True)
    return libc.syscall(CREATE_RULESET, None, 0, 1)


def python() -> list[Grant]:
    """Return rights to read this Python: its standard library and the C libraries below it.

    Without the packages installed beside it, in which a benchmark's answers may lie.
    """
    library = sysconfig.get_path("stdlib")
    found = [Grant(library, READ_DIR)]  # names of all, contents of what follows
    for entry in os.scandir(library):
        if entry.name not in FOREIGN:
            found.append(Grant(entry.path, READ))
    for folder in _library_folders():
        if library.startswith(f"{folder}/"):  # as where Python has a prefix of its own
            found += [Grant(str(path), READ) for path in Path(folder).glob("*.so*")]
        else:
            found.append(Grant(folder, READ))
    found += [Grant(path, READ) for path in BESIDE]
    return [*found, Grant(os.devnull, READ_FILE | WRITE_FILE)]


def enter(grants: Iterable[Grant], limits: dict[int, int]) -> None:
    """Take on all walls; the process must have one thread.

    limits: of `resource.setrlimit`, by its kind.
    """
    libc = ctypes.CDLL(None, use_errno=True)

    def call(name: str, *arguments: object) -> None:
        if getattr(libc, name)(*arguments):
            raise OSError(ctypes.get_errno(), f"the kernel refuses {name}")

    for kind, limit in {resource.RLIMIT_CORE: 0, **limits}.items():
        spare = kind == resource.RLIMIT_CPU  # SIGXCPU says why, and a second later it is killed
        resource.setrlimit(kind, (limit, limit + spare))
    call("prctl", 4, 0, 0, 0, 0)  # PR_SET_DUMPABLE: nobody else looks into it
    call("prctl", 38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
    _drop_capabilities(call)
    _landlock(libc, grants)
    call("prctl", 1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG: it ends with its supervisor
    syscalls.install(platform.machine())


def _drop_capabilities(call: Callable[..., None]) -> None:
    header = struct.pack("<Ii", 0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, this process
    call("capset", header, bytes(24))


def _landlock(libc: ctypes.CDLL, grants: Iterable[Grant]) -> None:
    known = version()
    rights = (1 << RIGHTS[min(known, max(RIGHTS))]) - 1
    networks = 3 if known >= 4 else None  # bind and connect over TCP
    scopes = 3 if known >= 6 else None  # abstract sockets and signals of others
    told = [rights, *(one for one in (networks, scopes) if one is not None)]
    head = struct.pack(f"<{len(told)}Q", *told)
    rules = libc.syscall(CREATE_RULESET, head, len(head), 0)
    if rules < 0:
        raise OSError(ctypes.get_errno(), "the kernel takes no Landlock rules")
    for path, granted in grants:
        with contextlib.suppress(FileNotFoundError):
            _grant(libc, rules, path, granted & rights)
    if libc.syscall(RESTRICT_SELF, rules, 0):
        raise OSError(ctypes.get_errno(), "the kernel does not hold to Landlock rules")
    os.close(rules)


def _grant(libc: ctypes.CDLL, rules: int, path: str, rights: int) -> None:
    place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        if not os.path.isdir(path):
            rights &= OF_A_FILE
        beneath = struct.pack("<Qi", rights, place)  # struct landlock_path_beneath_attr, packed
        if libc.syscall(ADD_RULE, rules, 1, beneath, 0):
            raise OSError(ctypes.get_errno(), f"the kernel takes no rule on {path}")
    finally:
        os.close(place)


def _library_folders() -> set[str]:
    """Folders of the shared libraries that this process has loaded."""
    with open("/proc/self/maps") as maps:
        files = {line.split(maxsplit=5)[5].strip() for line in maps if ".so" in line}
    folders = {os.path.dirname(path) for path in files if path.startswith("/")}
    return {path for path in folders if "lib-dynload" not in path and
            not any(name in path for name in FOREIGN)}
