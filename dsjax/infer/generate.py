"""Continue prompts: one prefill, then programs of a few decoding steps, streamed as they return.

Decoding one row is bound by dispatch, so a program runs several steps (a scan) before the host
looks; between programs the host streams what came and stops when every row has ended. No token of
a mixture is dropped in generation, whatever the training capacity: a row's text must not depend on
its neighbors.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from dsjax.config.model import ModelConfig, dropless
from dsjax.errors import UserError
from dsjax.infer import programs
from dsjax.infer.decode import State, cache_bytes_per_token, default_backend
from dsjax.infer.sample import NONE, Sampling
from dsjax.layers.backend import HIGH, Backend
from dsjax.model import transformer
from dsjax.model.transformer import TransformerParams
from dsjax.numerics import precision as numerics
from dsjax.params import key_of
from dsjax.runtime import fit

STEPS = 8  # passes of one program: a terminal still looks live, and dispatch is paid once
ROOM = 64  # caches are multiples of this many positions, so that few programs are compiled

OnTokens = Callable[[int, list[int]], None]
"""Called with a row and its next tokens, in order, as they come."""


@dataclass(frozen=True)
class Completion:
    """What one prompt became."""

    tokens: tuple[int, ...]
    """The new tokens; the stop id, if one came, is the last."""
    reason: Literal["stop", "length"]
    """Whether a stop id or `max_new` ended the row."""


@dataclass(frozen=True)
class Report:
    """How a generation went; compilation is in `compile_s` alone."""

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

    @property
    def tokens_per_s(self) -> float:
        """New tokens after each row's first, by the time spent decoding; 0 if nothing was."""
        return self.decoded / self.decode_s if self.decode_s else 0.0

    @property
    def tokens_per_pass(self) -> float:
        """From 1 (plain decoding) to J+1."""
        return self.decoded / self.passes if self.passes else 1.0


def generate(params: TransformerParams, cfg: ModelConfig, prompts: Sequence[Sequence[int]],
             sampling: Sampling, *, backend: Backend | None = None, draft: bool = False,
             context: int | None = None, on_tokens: OnTokens | None = None,
             steps: int = STEPS) -> list[Completion]:
    """Continue each prompt; rows may have unequal lengths and do not influence each other.

    `draft` speculates with every MTP module of the model. `context` is the most positions a row may
    take. `backend` decides precision and placement (`default_backend` when None; wrap your own in
    `decoding`). `steps` passes run between two looks of the host.
    """
    return generate_with_report(
        params, cfg, prompts, sampling, backend=backend, draft=draft, context=context,
        on_tokens=on_tokens, steps=steps,
    )[0]


def generate_with_report(params: TransformerParams, cfg: ModelConfig,
                         prompts: Sequence[Sequence[int]], sampling: Sampling, *,
                         backend: Backend | None = None, draft: bool = False,
                         context: int | None = None, on_tokens: OnTokens | None = None,
                         steps: int = STEPS) -> tuple[list[Completion], Report]:
    """Continue each prompt as `generate` does, and say how it went."""
    check(cfg, prompts, sampling, draft, context)
    backend = backend or default_backend()
    depth = cfg.mtp_depth if draft else 0
    room = _up(max(map(len, prompts)) + sampling.max_new + depth, ROOM)
    held = len(prompts) * room * cache_bytes_per_token(cfg, backend, depth)
    what = f"continuing {len(prompts)} prompts in {room:,} positions each"
    with fit.refusing(what, {"cache": held, "logits": len(prompts) * cfg.vocab * 4}, REMEDY):
        return _continue(params, cfg, prompts, sampling, backend, depth, room, on_tokens, steps)


REMEDY = "lower --max-new or --context, shorten the prompts, or give fewer of them at once"


def _continue(params: TransformerParams, cfg: ModelConfig, prompts: Sequence[Sequence[int]],
              sampling: Sampling, backend: Backend, depth: int, room: int,
              on_tokens: OnTokens | None, steps: int) -> tuple[list[Completion], Report]:
    """Prefill, then program after program until every row has ended."""
    params, cfg = ready(params, cfg, backend)
    static = {"cfg": cfg, "backend": backend, "law": sampling.law}
    start = time.perf_counter()
    tokens, lengths, keys = _inputs(prompts, sampling.seed)
    args = (params, tokens, lengths, keys)
    prefill = programs.compiled(programs.prefill, *args, **static, room=room, depth=depth)
    compile_s, start = _lap(start)
    state: State = prefill(*args)
    rows = _Rows(len(prompts), depth, sampling, on_tokens)
    rows.take_first(np.asarray(state.tokens)[np.arange(len(prompts)), [*map(len, prompts)]])
    prefill_s, start = _lap(start)
    advance = programs.compiled(programs.advance, params, state, keys, **static, steps=steps)
    more_compile_s, start = _lap(start)
    while rows.is_any_live:
        state, emitted = advance(params, state, keys)
        rows.take(*jax.device_get((emitted.tokens, emitted.count)))
    decode_s, _ = _lap(start)
    completions = [Completion(tuple(t), r or "length") for t, r in zip(rows.tokens, rows.reasons)]
    return completions, Report(
        prompt_tokens=sum(map(len, prompts)),
        new_tokens=sum(len(c.tokens) for c in completions),
        prefill_s=prefill_s,
        decode_s=decode_s if rows.passes else 0.0,
        compile_s=compile_s + more_compile_s,
        passes=rows.passes,
        decoded=rows.decoded,
        acceptance=tuple(float(n) / max(rows.passes, 1) for n in rows.accepted),
        cache_bytes_per_token=cache_bytes_per_token(cfg, backend, depth),
    )


def ready(params: TransformerParams, cfg: ModelConfig,
          backend: Backend) -> tuple[TransformerParams, ModelConfig]:
    """Hold weights in the backend's precision once, and lift the training capacity of experts."""
    cfg = dropless(cfg)
    if backend.precision.name not in HIGH:
        specs = transformer.specs(cfg)
        held = numerics.quantize_weights(params, specs, backend.precision)
        params = numerics.attach(params, held, specs)
    return params, cfg


class _Rows:
    """The host's account of a generation: what each row has, and whether it goes on."""

    def __init__(self, count: int, depth: int, sampling: Sampling, on_tokens: OnTokens | None):
        self.tokens: list[list[int]] = [[] for _ in range(count)]
        self.reasons: list[Literal["stop", "length"] | None] = [None] * count
        self.passes = self.decoded = 0
        self.accepted = np.zeros(depth, int)
        self._sampling = sampling
        self._on_tokens = on_tokens

    @property
    def is_any_live(self) -> bool:
        return None in self.reasons

    def take_first(self, first: np.ndarray) -> None:
        """Take what prefill chose, [B]."""
        for row, token in enumerate(first.tolist()):
            self._tell(row, self._append(row, [token]))

    def take(self, tokens: np.ndarray, counts: np.ndarray) -> None:
        """Take what a program emitted: tokens [steps, B, J+1], counts [steps, B]."""
        for row in range(tokens.shape[1]):
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
            if token in self._sampling.stop_ids:
                self.reasons[row] = "stop"
            elif len(self.tokens[row]) == self._sampling.max_new:
                self.reasons[row] = "length"
            if self.reasons[row]:
                return new[: i + 1]
        return new

    def _tell(self, row: int, new: list[int]) -> None:
        if self._on_tokens and new:
            self._on_tokens(row, new)


def check(cfg: ModelConfig, prompts: Sequence[Sequence[int]], sampling: Sampling, draft: bool,
          context: int | None) -> None:
    """Refuse in a sentence what `generate` cannot do, before anything is compiled."""
    if not prompts:
        raise UserError("no prompts were given; give at least one list of tokens")
    for i, prompt in enumerate(prompts):
        if not len(prompt):
            raise UserError(f"prompt {i} has no tokens; start it with the end-of-text token")
        if not 0 <= min(prompt) <= max(prompt) < cfg.vocab:
            raise UserError(
                f"prompt {i} has ids from {min(prompt)} to {max(prompt)}, but the model knows "
                f"0 to {cfg.vocab - 1}; use the tokenizer it was trained with"
            )
        if context is not None and len(prompt) + sampling.max_new > context:
            raise UserError(
                f"prompt {i} has {len(prompt)} tokens and max_new={sampling.max_new} asks for "
                f"{len(prompt) + sampling.max_new} positions, but the context is {context}; "
                "shorten the prompt, lower --max-new or raise --context"
            )
    if draft and not cfg.mtp_depth:
        raise UserError(
            "drafting needs an MTP module, but the model has mtp_depth=0; "
            "leave --draft out, or train with --model.mtp-depth 1"
        )


def _inputs(prompts: Sequence[Sequence[int]], seed: int) -> tuple[Array, Array, Array]:
    """Prompts padded on the right to a power of two, their lengths, and one key a row."""
    lengths = [len(prompt) for prompt in prompts]
    tokens = np.zeros((len(prompts), max(16, 1 << (max(lengths) - 1).bit_length())), np.int32)
    for row, prompt in enumerate(prompts):
        tokens[row, : len(prompt)] = prompt
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key_of(seed), jnp.arange(len(prompts)))
    return jnp.asarray(tokens), jnp.asarray(lengths, jnp.int32), keys


def _up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple


def _lap(start: float) -> tuple[float, float]:
    """Seconds since `start`, and now."""
    now = time.perf_counter()
    return now - start, now
