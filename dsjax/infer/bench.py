"""Speed of decoding at a given batch and context; the content of the cache does not matter."""

from __future__ import annotations

import statistics
import time
from dataclasses import asdict, dataclass
from typing import Any

import jax
import jax.numpy as jnp

from dsjax.config.model import ModelConfig
from dsjax.infer import programs
from dsjax.infer.decode import State, cache_bytes_per_token, written_out
from dsjax.infer.generate import ready
from dsjax.infer.sample import Sampling, sampling_params
from dsjax.layers.backend import Backend
from dsjax.model import transformer
from dsjax.model.transformer import TransformerParams
from dsjax.runtime import fit


@dataclass(frozen=True)
class Load:
    """Work of a benchmark: rows, positions that are cached at first, tokens a row, programs."""

    batch: int = 1
    context: int = 512
    steps: int = 64
    repeats: int = 5

    def __post_init__(self) -> None:
        """Refuse what is no work."""
        for name, value in asdict(self).items():
            if value < 1:
                raise ValueError(f"{name}={value} must be at least 1")

    @property
    def max_len(self) -> int:
        """Positions of a row that all programs together need."""
        return self.context + self.steps * (self.repeats + 1) + 1


def decode_bench(params: TransformerParams, cfg: ModelConfig, load: Load,
                 backend: Backend) -> dict[str, Any]:
    """Time greedy decoding; medians over programs after a first that is not counted.

    Keys: tok_s, ms_per_step, compile_s, cache_bytes_per_token, and those of the load.
    """
    held = load.batch * load.max_len * cache_bytes_per_token(cfg, backend)
    with fit.refusing(f"decoding {load.batch} rows of {load.max_len:,} positions",
                      {"cache": held, "logits": load.batch * cfg.vocab * 4},
                      "lower --batch-size, --seq-len or --steps"):
        return _measured(params, cfg, load, backend)


def _measured(params: TransformerParams, cfg: ModelConfig, load: Load,
              backend: Backend) -> dict[str, Any]:
    """Compile, run and time."""
    params, cfg = ready(params, cfg, backend)
    rows, greedy = (load.batch, load.max_len), Sampling(temperature=0)
    state = State(
        tokens=jax.random.randint(jax.random.key(1), rows, 0, cfg.vocab, jnp.int32),
        newest=jnp.full(load.batch, load.context, jnp.int32),
        keys=jax.random.split(jax.random.key(0), load.batch),
        prompt_len=jnp.full(load.batch, load.context, jnp.int32),
        sampling=sampling_params([greedy] * load.batch),
        cache=transformer.empty_cache(cfg, *rows, backend),
        recent=jnp.zeros((load.batch, 0, cfg.d_model), backend.dtype),
        mtp=(),
    )
    params, state = written_out(params, state, backend)
    start = time.perf_counter()
    static = {"cfg": cfg, "backend": backend, "steps": load.steps}
    advance = programs.compiled(programs.advance, params, state, **static)
    compile_s = time.perf_counter() - start
    seconds = []
    for _ in range(load.repeats + 1):
        start = time.perf_counter()
        state, emitted = advance(params, state)
        jax.block_until_ready(emitted)
        seconds.append(time.perf_counter() - start)
    median = statistics.median(seconds[1:])
    return {
        "tok_s": load.batch * load.steps / median,
        "ms_per_step": median / load.steps * 1e3,
        "compile_s": compile_s,
        "cache_bytes_per_token": cache_bytes_per_token(cfg, backend),
    } | asdict(load)
