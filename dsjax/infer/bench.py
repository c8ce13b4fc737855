"""Speed of reading prompts, of decoding and of the engine; the content of texts does not matter."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dsjax.infer import programs
from dsjax.infer.decode import Prompts, State, cache_bytes_per_token, written_out
from dsjax.infer.engine.device import Device, Setting
from dsjax.infer.engine.engine import Engine, Output
from dsjax.infer.generate import ready
from dsjax.infer.model import Model
from dsjax.infer.sample import Sampling, sampling_params
from dsjax.model import block, transformer
from dsjax.runtime import fit

REMEDY = "lower --batch-size, --seq-len or --steps"


@dataclass(frozen=True)
class Load:
    """Work of a benchmark: rows, positions that are cached at first, passes, programs, drafts."""

    batch: int = 1
    context: int = 512
    steps: int = 64
    repeats: int = 5
    depth: int = 0
    """MTP modules that draft."""

    def __post_init__(self) -> None:
        """Refuse what is no work."""
        for name, value in asdict(self).items():
            if value < (name != "depth"):
                raise ValueError(f"{name}={value} must be at least {int(name != 'depth')}")

    @property
    def new_tokens(self) -> int:
        """Tokens of a row that all programs together may give."""
        return self.steps * (self.repeats + 1) * (self.depth + 1)

    @property
    def max_len(self) -> int:
        """Positions of a row that all programs together need."""
        return self.context + self.new_tokens + self.depth + 1


def decode_bench(model: Model, load: Load) -> dict[str, Any]:
    """Time greedy decoding; medians over programs after a first that is not counted.

    Keys: tok_s, ms_per_step, tokens_per_pass, compile_s, cache_bytes_per_token, and those of the
    load.
    """
    held = load.batch * load.max_len * cache_bytes_per_token(model.cfg, model.backend, load.depth)
    with fit.refusing(f"decoding {load.batch} rows of {load.max_len:,} positions",
                      {"cache": held, "logits": load.batch * model.cfg.vocab * 4}, REMEDY):
        return _decode(model, load)


def _decode(model: Model, load: Load) -> dict[str, Any]:
    """Compile, run and time."""
    backend = model.backend
    params, cfg = ready(model.params, model.cfg, backend)
    rows = load.batch, load.max_len
    state = State(
        tokens=jax.random.randint(jax.random.key(1), rows, 0, cfg.vocab, jnp.int32),
        newest=jnp.full(load.batch, load.context, jnp.int32),
        keys=jax.random.split(jax.random.key(0), load.batch),
        prompt_len=jnp.full(load.batch, load.context, jnp.int32),
        sampling=sampling_params([GREEDY] * load.batch),
        cache=transformer.empty_cache(cfg, *rows, backend),
        recent=jnp.zeros((load.batch, 2 * load.depth, cfg.d_model), backend.dtype),
        mtp=tuple(block.empty_cache(cfg, *rows, backend) for _ in range(load.depth)),
    )
    params, state = written_out(params, state, backend)
    start = time.perf_counter()
    static = {"cfg": cfg, "backend": backend, "steps": load.steps}
    advance = programs.compiled(programs.advance, params, state, **static)
    compile_s = time.perf_counter() - start
    given: list[int] = []

    def one() -> None:
        nonlocal state
        state, emitted = advance(params, state)
        given.append(int(np.asarray(emitted.count).sum()))

    seconds = timed(one, load.repeats)
    median = statistics.median(seconds)
    return {
        "tok_s": statistics.median(n / s for n, s in zip(given[1:], seconds)),
        "ms_per_step": median / load.steps * 1e3,
        "tokens_per_pass": sum(given[1:]) / (load.batch * load.steps * load.repeats),
        "compile_s": compile_s,
        "cache_bytes_per_token": cache_bytes_per_token(cfg, backend, load.depth),
    } | asdict(load)


def prefill_bench(model: Model, load: Load) -> dict[str, Any]:
    """Time the program that reads prompts and chooses their first tokens.

    Keys: tok_s (of the prompts), ms, compile_s, and those of the load that count.
    """
    length = load.context
    held = load.batch * (length + 1) * cache_bytes_per_token(model.cfg, model.backend, load.depth)
    with fit.refusing(f"reading {load.batch} prompts of {length:,} tokens", {"cache": held},
                      "lower --batch-size or --seq-len"):
        return _prefill(model, load)


def _prefill(model: Model, load: Load) -> dict[str, Any]:
    """Compile, run and time."""
    params, cfg = ready(model.params, model.cfg, model.backend)
    shape = load.batch, load.context
    prompts = Prompts(
        tokens=jax.random.randint(jax.random.key(1), shape, 0, cfg.vocab, jnp.int32),
        lengths=jnp.full(load.batch, load.context, jnp.int32),
        keys=jax.random.split(jax.random.key(0), load.batch),
        sampling=sampling_params([GREEDY] * load.batch),
    )
    start = time.perf_counter()
    read = programs.compiled(programs.prefill, params, prompts, cfg=cfg, backend=model.backend,
                             max_len=load.context + 1, depth=load.depth)
    compile_s = time.perf_counter() - start
    median = statistics.median(timed(lambda: jax.block_until_ready(read(params, prompts)),
                                     load.repeats))
    return {"tok_s": load.batch * load.context / median, "ms": median * 1e3,
            "compile_s": compile_s, "repeats": load.repeats, "depth": load.depth}


def serve_bench(model: Model, load: Load) -> dict[str, Any]:
    """Time the engine with `batch` requests at once: their prompts, then steps of all of them.

    Keys: tok_s (while all decode; medians over `repeats` times `steps` steps), ms_per_step,
    tokens_per_pass, prefill_tok_s (from the first request until each has a token), host_share (of
    a step's time, the host's own), compile_s, cache_bytes_per_token, and those of the load.
    """
    held = load.batch * load.max_len * cache_bytes_per_token(model.cfg, model.backend, load.depth)
    with fit.refusing(f"serving {load.batch} requests of {load.max_len:,} positions",
                      {"pages": held}, REMEDY):
        return _serve(model, load)


def _serve(model: Model, load: Load) -> dict[str, Any]:
    """Compile, serve and time."""
    start = time.perf_counter()
    chunks = load.batch * (-(-load.context // Setting.chunk) + 1)  # others decode meanwhile
    max_len = load.max_len + (load.depth + 1) * chunks
    engine = Engine(Device(model, Setting(slots=load.batch, max_len=max_len,
                                          draft=load.depth > 0)))
    compile_s = time.perf_counter() - start
    draw = np.random.default_rng(1)
    sampling = Sampling(temperature=0, max_new_tokens=max_len - load.context)
    begun: set[int] = set()
    start = time.perf_counter()
    for row in range(load.batch):
        prompt = draw.integers(0, model.cfg.vocab, load.context).tolist()
        engine.add(prompt, sampling, functools.partial(_note, begun, row))
    while len(begun) < load.batch:
        engine.step()
    prefill_s = time.perf_counter() - start
    before = engine.stats()
    given = [before.generated_tokens]

    def one() -> None:
        for _ in range(load.steps):
            engine.step()
        given.append(engine.stats().generated_tokens)

    seconds = timed(one, load.repeats)
    after = engine.stats()
    assert after.running == load.batch, f"a request ended while it was timed: {after}"
    new = np.diff(given)[1:]
    return {
        "tok_s": statistics.median(n / s for n, s in zip(new, seconds)),
        "ms_per_step": statistics.median(seconds) / load.steps * 1e3,
        "tokens_per_pass": float(new.sum()) / (load.batch * load.steps * load.repeats),
        "prefill_tok_s": load.batch * load.context / prefill_s,
        "host_share": (after.host_s - before.host_s) / (after.total_s - before.total_s),
        "compile_s": compile_s,
        "cache_bytes_per_token": cache_bytes_per_token(model.cfg, model.backend, load.depth),
    } | asdict(load)


def _note(begun: set[int], row: int, _: Output) -> None:
    """Note that a row has a token."""
    begun.add(row)


GREEDY = Sampling(temperature=0)


def timed(one: Callable[[], Any], repeats: int) -> list[float]:
    """Seconds of each call after a first that is not counted."""
    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        one()
        seconds.append(time.perf_counter() - start)
    return seconds[1:]
