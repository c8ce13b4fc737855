"""Tests run on eight virtual CPU devices; no rank or dtype is promoted silently; keys are fixed.

Compiled programs and traces are let go between files once a process holds 2 GB, so that two
processes stay below 8 GB together.

This is the only place where tests set JAX options. Processes that a test starts inherit what
is in the environment: the platform, XLA's flags, and that programs name no source lines. But for
these they see the machine as a user's process does.
"""

import ctypes
import gc
import os
import signal
import zlib
from collections.abc import Iterator
from pathlib import Path

# A shell's background job ignores ctrl-C, and so would the processes that tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ["JAX_PLATFORMS"] = "cpu"
# Eight devices on two busy cores: a collective may wait long for its slowest member.
PATIENCE = ("--xla_cpu_collective_call_warn_stuck_timeout_seconds=120 "
            "--xla_cpu_collective_call_terminate_timeout_seconds=600")
# Two thirds of a test's time is compiling what runs once or twice: LLVM's level 0, XLA's older
# way to write loops, which gives LLVM less to translate, and a program in one part instead of up to
# 32, each with a copy of what it shares. The same tests hold of programs that are compiled as
# users' are: `make test COMPILE=full`, as `make test-all` does.
FAST = ("--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true "
        "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1")
OWN = FAST if os.environ.get("DSJAX_TESTS_COMPILE", "fast") == "fast" else ""
os.environ["XLA_FLAGS"] = " ".join(filter(None, [OWN, os.environ.get("XLA_FLAGS"), PATIENCE]))
os.environ.setdefault("MPLBACKEND", "agg")
# Operations of programs need not say which lines made them, which takes a tenth of the time, too.
os.environ["JAX_TRACEBACK_IN_LOCATIONS_LIMIT"] = "0"
# Processes that tests start keep their programs here, not in the user's folder.
os.environ["XDG_CACHE_HOME"] = str(Path(__file__).parents[1] / ".cache")
if "PYTEST_XDIST_WORKER" in os.environ:  # each process has a core; NumPy shall not take them all
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import jax  # noqa: E402 (it reads the environment when it is imported)
import pytest  # noqa: E402

CACHE = Path(__file__).parents[1] / ".cache" / "jax"
HELD = 2 * 10**9
"""Bytes of a process above which it lets its programs go; small ones are shared by many files."""

# Python need not look for cycles among millions of objects that stay: a tenth of a test's time.
gc.set_threshold(200_000, 50, 1000)
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")
# Programs that took long to compile are kept between runs. Processes share the folder without a
# lock: a half-written entry is reported by a warning (ignored in pyproject.toml) and compiled anew.
jax.config.update("jax_compilation_cache_dir", str(CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
jax.devices()


@pytest.fixture
def key(request: pytest.FixtureRequest) -> jax.Array:
    """A random key of the test's own, the same in every run and in every order of tests."""
    return jax.random.key(zlib.crc32(request.node.nodeid.encode()))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> Iterator[None]:
    """Let compiled programs go after a file, if there are many."""
    result = yield
    if (nextitem is None or nextitem.path != item.path) and resident() > HELD:
        jax.clear_caches()
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
    return result


def resident() -> int:
    """Bytes of memory that this process has."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
