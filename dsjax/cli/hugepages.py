"""Start the process once more with glibc's allocator set to huge pages, where that pays.

XLA on the CPU maps and frees its temporaries on every step, and with pages of 4 KiB the faults cost
a training step 14 to 27 percent. The tunable is read before any Python runs, so a process cannot
set it for itself: it replaces itself by its own command with the variable set. Runs say so in
their header (dsjax.train.platform).
"""

import os
import sys
from pathlib import Path

TUNABLE = "glibc.malloc.hugetlb=1"
SINCE = (2, 35)  # the glibc that brought the tunable
KERNEL_MODE = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def restart_with_huge_pages() -> None:
    """Replace this process by its own command with the tunable set; return where none is gained.

    A GLIBC_TUNABLES that is already set is left alone, so the second start returns here too.
    """
    if "GLIBC_TUNABLES" in os.environ or not is_offered():
        return
    environment = {**os.environ, "GLIBC_TUNABLES": TUNABLE}
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


def is_offered() -> bool:
    """Whether this kernel gives huge pages on request and this libc can ask for them."""
    if sys.platform != "linux" or not KERNEL_MODE.is_file():
        return False
    library, _, number = (os.confstr("CS_GNU_LIBC_VERSION") or "").partition(" ")
    if library != "glibc" or tuple(map(int, number.split(".")[:2])) < SINCE:
        return False
    return "[madvise]" in KERNEL_MODE.read_text()
