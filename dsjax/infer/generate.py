"""Continue prompts: one prefill, then programs of a few decoding steps, streamed as they return.

Decoding one row is bound by dispatch, so a program runs several steps (a scan) before the host
looks; between programs the host streams what came and stops when every row has ended. No token of
a mixture is dropped in generation, whatever the training capacity: a row's text must not depend on
its neighbors.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from dsjax.config.model import ModelConfig, dropless
from dsjax.errors import UserError
from dsjax.infer import inputs, programs
from dsjax.infer.decode import State, cache_bytes_per_token, written_out
from dsjax.infer.offload import decode as offload
from dsjax.infer.offload.cache import NO_DRAFTS, Counts, ExpertCache
from dsjax.infer.sample import NONE, Sampling
from dsjax.layers.backend import ONE_DEVICE, Backend
from dsjax.model import transformer
from dsjax.model.transformer import TransformerParams
from dsjax.numerics import precision as numerics
from dsjax.runtime import fit
from dsjax.runtime.backend import default_backend

STEPS = 8  # passes of one program: a terminal still looks live, and dispatch is paid once
CACHE_LEN = 64  # caches are multiples of this many positions, so that few programs are compiled

OnTokens = Callable[[int, list[int]], None]
"""Called with a row and its next tokens, in order, as they come."""

IsEnd = Callable[[int, int], bool]
"""Called with a row and each of its tokens but a stop id, in order: True if its text ends there."""


@dataclass(frozen=True)
class Options:
    """Settings of a generation that all its rows share."""

    backend: Backend = field(default_factory=default_backend)
    """Precision and placement; one device in float32 by default."""
    mesh: Mesh | None = None
    """The devices that the backend and the parameters lie on; None is one device."""
    draft: bool = False
    """Draft with every MTP module of the model."""
    context: int | None = None
    """Positions a row may take at most."""
    steps: int = STEPS
    """Passes between two looks of the host."""
    experts: ExpertCache | None = None
    """The cache of routed experts that the parameters are without."""


@dataclass(frozen=True)
class Completion:
    """Continuation of one prompt."""

    tokens: tuple[int, ...]
    """The new tokens; the stop id, if one came, is the last."""
    finish_reason: Literal["stop", "length"]
    """Cause of the row's end: a stop id or what the caller saw in its text, or `max_new_tokens`."""


@dataclass(frozen=True)
class Report:
    """Counts and times of a generation; compilation is in `compile_s` alone."""

    prompt_tokens: int
    new_tokens: int
    prefill_s: float
    decode_s: float
    compile_s: float
    passes: int
    """Passes of the main model after prefill, counted a row, up to the row's end."""
    decoded: int
    """Tokens those passes gave, up to the pass in which the row ended (included)."""
    acceptance: tuple[float, ...]
    """Share of passes in which the draft of depth k was accepted; empty without drafting."""
    cache_bytes_per_token: int
    prefill_experts: Counts | None = None
    """Use of the cache of experts while the prompts were read; None without one."""
    decode_experts: Counts | None = None
    """Use of it after that."""

    @property
    def tokens_per_s(self) -> float:
        """New tokens after each row's first, by the time spent decoding; 0 if nothing was."""
        return self.decoded / self.decode_s if self.decode_s else 0.0

    @property
    def tokens_per_pass(self) -> float:
        """From 1 (plain decoding) to J+1."""
        return self.decoded / self.passes if self.passes else 1.0


class Generation(NamedTuple):
    """Completions in the order of their prompts, and how it went."""

    completions: list[Completion]
    report: Report


def generate(params: TransformerParams, cfg: ModelConfig, prompts: Sequence[Sequence[int]],
             sampling: Sampling | Sequence[Sampling], options: Options | None = None,
             on_tokens: OnTokens | None = None, is_end: IsEnd | None = None) -> Generation:
    """Continue each prompt; rows may have unequal lengths and do not influence each other.

    `sampling` is of all rows, or one a row; programs depend on its `Work` alone. On a mesh the
    parameters lie as `rules.used_shardings` says, and every process calls with the same arguments.
    `is_end` ends a row by what its tokens say, as a stop id would; it is asked before `on_tokens`
    is told.
    """
    options = Options() if options is None else options
    rows = [sampling] * len(prompts) if isinstance(sampling, Sampling) else list(sampling)
    check(cfg, prompts, rows, options)
    backend, depth = options.backend, cfg.mtp_depth if options.draft else 0
    longest = max(len(p) + row.max_new_tokens for p, row in zip(prompts, rows, strict=True))
    max_len = -(-(longest + depth) // CACHE_LEN) * CACHE_LEN
    held = inputs.rows_here(len(prompts), options.mesh)
    what = f"continuing {len(prompts)} prompts in {max_len:,} positions each"
    with fit.refusing(what, {"cache": held * max_len * cache_bytes_per_token(cfg, backend, depth),
                             "logits": held * cfg.vocab * 4}, REMEDY):
        return _continue(params, cfg, prompts, _Rows(rows, depth, on_tokens, is_end), max_len,
                         options)


REMEDY = "lower --max-new-tokens or --context, shorten the prompts, or give fewer of them at once"


def _continue(params: TransformerParams, cfg: ModelConfig, prompts: Sequence[Sequence[int]],
              rows: _Rows, max_len: int, options: Options) -> Generation:
    """Prefill, then program after program until every row has ended."""
    backend, depth = options.backend, len(rows.accepted)
    if options.experts is not None:
        return _over_cache(params, cfg, prompts, rows, max_len, options)
    params, cfg = ready(params, cfg, backend)
    static = {"cfg": cfg, "backend": backend}
    start = time.perf_counter()
    args = params, inputs.of_prompts(prompts, rows.sampling, options.mesh)
    prefill = programs.compiled(programs.prefill, *args, **static, max_len=max_len, depth=depth)
    compile_s, start = _lap(start)
    state: State
    state, first = prefill(*args)
    rows.take_first(np.asarray(first))
    prefill_s, start = _lap(start)
    params, state = written_out(params, state, backend)
    advance = programs.compiled(programs.advance, params, state, **static, steps=options.steps)
    more_compile_s, start = _lap(start)
    while rows.is_any_live:
        state, emitted = advance(params, state)
        rows.take(*jax.device_get((emitted.tokens, emitted.count)))
    decode_s, _ = _lap(start)
    bytes_ = cache_bytes_per_token(cfg, backend, depth)
    return rows.generation(sum(map(len, prompts)), bytes_,
                           Times(prefill_s, decode_s, compile_s + more_compile_s))


def _over_cache(params: TransformerParams, cfg: ModelConfig, prompts: Sequence[Sequence[int]],
                rows: _Rows, max_len: int, options: Options) -> Generation:
    """As `_continue`, for parameters that `infer.load` made ready, layer by layer."""
    assert options.experts is not None, "the routed experts lie in a cache"
    backend, counts = options.backend, options.experts.counts
    own = offload.Programs(params, cfg, backend, options.experts)
    before, start = dataclasses.replace(counts), time.perf_counter()
    state, first = own.prefill(inputs.of_prompts(prompts, rows.sampling, None), max_len)
    rows.take_first(np.asarray(first))
    prefill_s, start = _lap(start)
    compile_s, read = own.layers.compile_s, dataclasses.replace(counts)
    while rows.is_any_live:
        state, emitted = own.advance(state)
        rows.take(*jax.device_get((emitted.tokens, emitted.count)))
    decode_s, _ = _lap(start)
    more_compile_s = own.layers.compile_s - compile_s
    made = rows.generation(sum(map(len, prompts)), cache_bytes_per_token(cfg, backend),
                           Times(prefill_s - compile_s, decode_s - more_compile_s,
                                 compile_s + more_compile_s))
    return made._replace(report=dataclasses.replace(
        made.report, prefill_experts=read.since(before), decode_experts=counts.since(read)))


class Times(NamedTuple):
    """Seconds of a generation's parts."""

    prefill: float
    decode: float
    compile: float


def ready(params: TransformerParams, cfg: ModelConfig, backend: Backend,
          is_consumed: bool = False) -> tuple[TransformerParams, ModelConfig]:
    """Quantize weights to the backend's precision once, and lift the training capacity of experts.

    On one device a precision that only rounds them has them once, in what is multiplied; those
    that are consumed are deleted.
    """
    cfg = dropless(cfg)
    if backend.precision.casts_weights:
        specs = transformer.specs(cfg)
        quantize = functools.partial(quantized, specs=specs, backend=backend)
        if backend.layout is ONE_DEVICE and backend.precision.rounds_weights:
            return numerics.one_copy(params, specs, backend.precision, backend.dtype,
                                     is_consumed), cfg
        operands = (quantize if backend.layout is ONE_DEVICE else jax.jit(quantize))(params)
        params = numerics.attach(params, operands, specs)
    return params, cfg


def quantized(params: TransformerParams, specs: TransformerParams, backend: Backend) -> Any:
    """Quantize the matrices of every product, where a step uses them."""
    operands = numerics.quantize_weights(params, specs, backend.precision)
    return backend.layout.gather_params(operands, specs)


class _Rows:
    """The host's account of a generation: what each row has, and whether it goes on."""

    def __init__(self, sampling: list[Sampling], depth: int, on_tokens: OnTokens | None,
                 is_end: IsEnd | None):
        self.sampling = sampling
        self.tokens: list[list[int]] = [[] for _ in sampling]
        self.reasons: list[Literal["stop", "length"] | None] = [None for _ in sampling]
        self.passes = self.decoded = 0
        self.accepted = np.zeros(depth, int)
        self._on_tokens, self._is_end = on_tokens, is_end

    @property
    def is_any_live(self) -> bool:
        return None in self.reasons

    def generation(self, prompt_tokens: int, cache_bytes: int, times: Times) -> Generation:
        """Return the completion of each row, all of which have ended, and the report."""
        done = [Completion(tuple(t), r or "length") for t, r in zip(self.tokens, self.reasons)]
        return Generation(done, Report(
            prompt_tokens=prompt_tokens,
            new_tokens=sum(len(c.tokens) for c in done),
            prefill_s=times.prefill,
            decode_s=times.decode if self.passes else 0.0,
            compile_s=times.compile,
            passes=self.passes,
            decoded=self.decoded,
            acceptance=tuple(float(n) / max(self.passes, 1) for n in self.accepted),
            cache_bytes_per_token=cache_bytes,
        ))

    def take_first(self, first: np.ndarray) -> None:
        """Take what prefill chose, [B]; rows beyond the prompts only fill the batch."""
        for row, token in enumerate(first.tolist()[: len(self.tokens)]):
            self._tell(row, self._append(row, [token]))

    def take(self, tokens: np.ndarray, counts: np.ndarray) -> None:
        """Take what a program emitted: tokens [steps, B, J+1], counts [steps, B]."""
        for row in range(len(self.tokens)):
            news: list[int] = []
            for new, count in zip(tokens[:, row].tolist(), counts[:, row].tolist(), strict=True):
                if self.reasons[row]:
                    break
                kept = self._append(row, new[:count])
                news += kept
                self.passes += 1
                self.decoded += len(kept)
                self.accepted += np.arange(1, len(self.accepted) + 1) < count
            self._tell(row, news)

    def _append(self, row: int, new: list[int]) -> list[int]:
        """Add tokens up to the row's end; returns those added."""
        for i, token in enumerate(new):
            if token == NONE:
                raise UserError(
                    f"the model's logits after {len(self.tokens[row])} new tokens of prompt {row} "
                    "are not numbers, so there is no token to choose; its parameters hold NaN or "
                    "are too large: look at the loss of its training, or use an earlier checkpoint"
                )
            self.tokens[row].append(token)
            if token in self.sampling[row].stop_ids or (
                    self._is_end is not None and self._is_end(row, token)):
                self.reasons[row] = "stop"
            elif len(self.tokens[row]) == self.sampling[row].max_new_tokens:
                self.reasons[row] = "length"
            if self.reasons[row]:
                return new[: i + 1]
        return new

    def _tell(self, row: int, new: list[int]) -> None:
        if self._on_tokens and new:
            self._on_tokens(row, new)


def check(cfg: ModelConfig, prompts: Sequence[Sequence[int]], sampling: Sequence[Sampling],
          options: Options) -> None:
    """Refuse in a sentence what `generate` cannot do, before anything is compiled."""
    if not prompts:
        raise UserError("no prompts were given; give at least one list of tokens")
    if len(sampling) != len(prompts):
        raise UserError(f"{len(prompts)} prompts have {len(sampling)} samplings; give one for all, "
                        "or one for each")
    context = options.context
    for i, (prompt, row) in enumerate(zip(prompts, sampling, strict=True)):
        if not len(prompt):
            raise UserError(f"prompt {i} has no tokens; start it with the end-of-text token")
        if not 0 <= min(prompt) <= max(prompt) < cfg.vocab:
            raise UserError(
                f"prompt {i} has ids from {min(prompt)} to {max(prompt)}, but the model knows "
                f"0 to {cfg.vocab - 1}; use the tokenizer it was trained with"
            )
        if context is not None and len(prompt) + row.max_new_tokens > context:
            raise UserError(
                f"prompt {i} has {len(prompt)} tokens and max_new_tokens={row.max_new_tokens} asks "
                f"for {len(prompt) + row.max_new_tokens} positions, but the context is {context}; "
                "shorten the prompt, lower --max-new-tokens or raise --context"
            )
    if options.draft and options.experts is not None:
        raise UserError(NO_DRAFTS)
    if options.draft and not cfg.mtp_depth:
        raise UserError(
            "drafting needs an MTP module, but the model has mtp_depth=0; "
            "leave --draft out, or train with --model.mtp-depth 1"
        )


def _lap(start: float) -> tuple[float, float]:
    """Seconds since `start`, and now."""
    now = time.perf_counter()
    return now - start, now
