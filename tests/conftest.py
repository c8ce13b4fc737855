"""Tests run on eight virtual CPU devices; no rank or dtype is promoted silently; keys are fixed.

This is the only place where tests set JAX options. Processes that a test starts inherit none of
them but the platform: they see the machine as a user's process does.
"""

import os
import zlib
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
# Eight devices on two busy cores: a collective may wait long for its slowest member.
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_cpu_collective_call_warn_stuck_timeout_seconds=120",
        "--xla_cpu_collective_call_terminate_timeout_seconds=600",
    ]
).strip()
os.environ.setdefault("MPLBACKEND", "agg")
# Processes that tests start keep their programs here, not in the user's folder.
os.environ["XDG_CACHE_HOME"] = str(Path(__file__).parents[1] / ".cache")
if "PYTEST_XDIST_WORKER" in os.environ:  # each process has a core; NumPy shall not take them all
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import jax
import pytest

CACHE = Path(__file__).parents[1] / ".cache" / "jax"

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")
# Programs that took long to compile are kept between runs. Processes share the folder without a
# lock: a half-written entry is reported by a warning (ignored in pyproject.toml) and compiled anew.
jax.config.update("jax_compilation_cache_dir", str(CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


@pytest.fixture
def key(request: pytest.FixtureRequest) -> jax.Array:
    """A random key of the test's own, the same in every run and in every order of tests."""
    return jax.random.key(zlib.crc32(request.node.nodeid.encode()))
