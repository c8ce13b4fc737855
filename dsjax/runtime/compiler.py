"""Options of compilers, for a run on its machine and for one compiled ahead: one table.

Each option stands with its reason. The compilers of other versions may not know one; it is then
left out, and the header of a run or the plan says which were used.
"""

from __future__ import annotations

import os
import re
from typing import Any

import jax

RUN: dict[str, dict[str, Any]] = {
    "tpu": {
        # exchanges of tokens become pairs that other work may run between
        "xla_tpu_enable_async_all_to_all": True,
        "xla_tpu_enable_async_ragged_all_to_all": True,
        # without it the scheduler leaves products that do not need an exchange until it is over
        "xla_tpu_use_aggressive_scheduling": True,
    },
    "cuda": {
        # an exchange starts early and is done late: the schedule puts other work between
        "xla_gpu_enable_latency_hiding_scheduler": True,
        # several at once: else gathers of weights and small exchanges, one after another, take the
        # time beside products from the large ones
        "xla_gpu_experimental_parallel_collective_overlap_limit": 4,
        # all exchanges count alike for the scheduler, which hides small ones first: a large one
        # that starts as soon as it can has more work behind it
        "xla_gpu_experimental_collective_start_as_early_as_possible": True,
    },
}
AHEAD: dict[str, dict[str, Any]] = {
    # kernels cannot be timed on a GPU that is not here
    "cuda": {"xla_gpu_autotune_level": 0},
}


def here() -> dict[str, Any]:
    """Options for the devices of this process that their compiler knows.

    One that the user's XLA_FLAGS or LIBTPU_INIT_ARGS name is left to them: an option of a program
    would win over these.
    """
    platform = {"gpu": "cuda"}.get(jax.default_backend(), jax.default_backend())
    told = f"{os.environ.get('XLA_FLAGS', '')} {os.environ.get('LIBTPU_INIT_ARGS', '')}"
    named = set(re.findall(r"--(?:no)?(\w+)", told))
    return {name: value for name, value in RUN.get(platform, {}).items()
            if name not in named and _is_known(name, value)}


def _is_known(name: str, value: Any) -> bool:
    """Try an option on the smallest program."""
    try:
        jax.jit(lambda: 0, compiler_options={name: value}).lower().compile()
    except jax.errors.JaxRuntimeError as error:
        if unknown(error) is None:
            raise
        return False
    return True


def ahead(platform: str) -> dict[str, Any]:
    """Options to compile with for a machine that is not here."""
    return RUN.get(platform, {}) | AHEAD.get(platform, {})


def unknown(error: Exception) -> str | None:
    """The option that a compiler says it does not know, None where that is not its trouble."""
    found = re.search(r"No such compile option: '(\w+)'", str(error))
    return found[1] if found else None
