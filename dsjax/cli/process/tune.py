"""Set a process up for XLA on the CPU before anything of JAX starts.

Huge pages: XLA maps and frees its temporaries on every step, and with pages of 4 KiB the faults
cost a training step 14 to 27 percent. glibc reads the tunable before any Python runs, so a process
cannot set it for itself: it replaces itself by its own command with the variable set.

Kernels: LLVM's loop unrolling and its search for vectors in straight-line code take a quarter of
the time to compile a training step, and steps are as fast or faster without them, because XLA's
own loops come vectorized. (Its first level of optimization takes an eighth less again, but 3 to 12
percent of the speed of steps in bfloat16 and FP8.)

Patience: virtual devices of one process share its cores, and XLA ends the process where one waits
40 seconds for the others in a collective, which a busy machine reaches; they may wait ten minutes.

Runs say in their header what was chosen (dsjax.runtime.header).
"""

import os
import sys
from pathlib import Path

from dsjax.cli.process import interrupt

TUNABLE = "glibc.malloc.hugetlb=1"
SINCE = (2, 35)  # the glibc that brought the tunable
KERNEL_MODE = Path("/sys/kernel/mm/transparent_hugepage/enabled")
KERNELS = ("--xla_backend_extra_options="
           "xla_cpu_disable_loop_unrolling,xla_cpu_disable_slp_vectorizer")
PATIENCE = ("--xla_cpu_collective_call_warn_stuck_timeout_seconds=120 "
            "--xla_cpu_collective_call_terminate_timeout_seconds=600")


def tune_process() -> None:
    """Set XLA's options, then start the command once more where huge pages are to be had.

    XLA_FLAGS that name such options and a GLIBC_TUNABLES that is set are left alone, so the second
    start returns here too.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    added = [option for sign, option in (("xla_backend_", KERNELS), ("_call_", PATIENCE))
             if sign not in flags]
    os.environ["XLA_FLAGS"] = " ".join(filter(None, [flags, *added]))
    if "GLIBC_TUNABLES" not in os.environ and is_offered():
        environment = {**os.environ, "GLIBC_TUNABLES": TUNABLE}
        interrupt.hold_back()
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


def is_offered() -> bool:
    """Return True where this kernel gives huge pages on request and this libc can ask."""
    if sys.platform != "linux" or not KERNEL_MODE.is_file():
        return False
    library, _, number = (os.confstr("CS_GNU_LIBC_VERSION") or "").partition(" ")
    if library != "glibc" or tuple(map(int, number.split(".")[:2])) < SINCE:
        return False
    return "[madvise]" in KERNEL_MODE.read_text()
