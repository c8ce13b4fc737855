"""Memory of a process on a CPU: glibc keeps what a step needs again, gives back the rest."""

from __future__ import annotations

import ctypes
import os
import resource
import sys
from pathlib import Path

import jax

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # glibc's malloc.h
ROOM = 512 << 20  # bytes of heap beside a step's temporaries


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
    """Return True if memory is allocated by glibc, whose calls these are."""
    return sys.platform == "linux" and (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc")
