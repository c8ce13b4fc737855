"""How fast decoding is at a given batch and context; the content of the cache does not matter."""

from __future__ import annotations

import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp

from dsjax.config.model import ModelConfig
from dsjax.infer import programs
from dsjax.infer.decode import State, cache_bytes_per_token, default_backend
from dsjax.infer.generate import ready
from dsjax.infer.sample import Law
from dsjax.layers.backend import Backend
from dsjax.model import transformer
from dsjax.model.transformer import TransformerParams
from dsjax.runtime import fit


def decode_bench(params: TransformerParams, cfg: ModelConfig, batch: int, context: int, steps: int,
                 *, repeats: int = 5, backend: Backend | None = None) -> dict[str, Any]:
    """Time greedy decoding of `steps` tokens a row after `context` cached ones; medians.

    Every repeat is one program of `steps` steps after a first that is not counted. Keys: tok_s,
    ms_per_step, compile_s, cache_bytes_per_token, batch, context, steps, repeats.
    """
    for name, value in {"batch": batch, "context": context, "steps": steps}.items():
        if value < 1:
            raise ValueError(f"{name}={value} must be at least 1")
    backend = backend or default_backend()
    room = context + steps * (repeats + 1) + 1
    held = batch * room * cache_bytes_per_token(cfg, backend)
    with fit.refusing(f"decoding {batch} rows of {room:,} positions",
                      {"cache": held, "logits": batch * cfg.vocab * 4},
                      "lower --batch-size, --seq-len or --steps"):
        return _measured(params, cfg, batch, context, steps, repeats, room, backend)


def _measured(params: TransformerParams, cfg: ModelConfig, batch: int, context: int, steps: int,
              repeats: int, room: int, backend: Backend) -> dict[str, Any]:
    """Compile, run and time."""
    params, cfg = ready(params, cfg, backend)
    keys = jax.random.split(jax.random.key(0), batch)
    state = State(
        tokens=jax.random.randint(jax.random.key(1), (batch, room), 0, cfg.vocab, jnp.int32),
        newest=jnp.full(batch, context, jnp.int32),
        cache=transformer.empty_cache(cfg, batch, room, backend),
        recent=jnp.zeros((batch, 0, cfg.d_model), backend.dtype),
        mtp=(),
    )
    start = time.perf_counter()
    static = {"cfg": cfg, "backend": backend, "law": Law(temperature=0.0), "steps": steps}
    advance = programs.compiled(programs.advance, params, state, keys, **static)
    compile_s = time.perf_counter() - start
    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        state, emitted = advance(params, state, keys)
        jax.block_until_ready(emitted)
        seconds.append(time.perf_counter() - start)
    median = statistics.median(seconds[1:])
    return {
        "tok_s": batch * steps / median,
        "ms_per_step": median / steps * 1e3,
        "compile_s": compile_s,
        "cache_bytes_per_token": cache_bytes_per_token(cfg, backend),
        "batch": batch,
        "context": context,
        "steps": steps,
        "repeats": repeats,
    }
