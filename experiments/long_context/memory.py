"""Largest memory of a process that attends over many tokens, forward and backward.

Each length has a process of its own, as a process's peak never falls again. Attention is `tiny`'s,
one layer: four heads of 48 channels a score and 32 a value, in float32.
"""

from __future__ import annotations

import multiprocessing
import resource
import time
from pathlib import Path
from typing import Any

from configs import tiny
from dsjax.config.model import MLAConfig
from experiments.common.command import Asked

LENGTHS = (8192, 16384, 32768)
COLUMNS = ("tokens", "pass", "MB of the process", "MB above its start", "KB a token",
           "MB of one T x T matrix a head", "seconds")


def main(asked: Asked) -> None:
    """Measure and write the record."""
    rows = []
    start = multiprocessing.get_context("spawn")
    for length in (1024, 2048) if asked.is_quick else LENGTHS:
        for is_backward in (False, True):
            with start.Pool(1) as alone:
                found = alone.apply(measure, (length, is_backward))
            own = found["peak"] - found["start"]
            rows.append([f"{length:,}", "forward and backward" if is_backward else "forward",
                         f"{found['peak'] / 1e6:,.0f}", f"{own / 1e6:,.0f}",
                         f"{own / length / 1e3:.1f}", f"{4 * length**2 / 1e6:,.0f}",
                         f"{found['seconds']:.1f}"])
            print(*rows[-1], flush=True)
    asked.write("memory", "memory of one layer's attention grows with the tokens, not with their "
                "square", COLUMNS, rows)


def measure(length: int, is_backward: bool) -> dict[str, Any]:
    """Attend once; bytes of the process before it compiles and at its largest, and the time.

    Linux alone says the first.
    """
    import jax
    import jax.numpy as jnp

    from dsjax.ops.attention import attend

    cfg = tiny.config().model.attention
    assert isinstance(cfg, MLAConfig), "tiny has latent attention"
    shape = 1, cfg.heads, length
    segments = jnp.ones((1, length), jnp.int32)
    *qk, v = (jax.random.normal(jax.random.key(i), (*shape, size))
              for i, size in enumerate((cfg.qk_dim, cfg.qk_dim, cfg.value_dim)))
    jax.block_until_ready((qk, v))
    start = _now()

    def loss(q: Any, k: Any, v: Any) -> Any:
        return attend(q, k, v, segments, cfg.qk_dim**-0.5).sum()

    wanted = jax.grad(loss, (0, 1, 2)) if is_backward else loss
    run = jax.jit(wanted).lower(*qk, v).compile()
    began = time.perf_counter()
    jax.block_until_ready(run(*qk, v))
    return {"start": start, "peak": _peak(), "seconds": time.perf_counter() - began}


def _now() -> int:
    """Resident memory of this process, in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def _peak() -> int:
    """Largest resident memory of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
