"""Prefill once in the expanded form, then decode step by step in the absorbed form.

Rows of a batch have unequal lengths. Prompts are padded on the right: padding is a segment of its
own while the prompt is read, and what it leaves in the cache lies beyond the row's newest position,
where no query looks before the position is written again.

Axes: B batch, T prompt time, S cache positions, W = 2J recent positions, D model, J MTP depth.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from dsjax.config.model import ModelConfig
from dsjax.infer.penalties import Text, penalized
from dsjax.infer.sample import SamplingParams, probs, sample
from dsjax.layers.backend import ONE_DEVICE, Backend
from dsjax.layers.cache import Cache, Kept
from dsjax.model import mtp, transformer
from dsjax.model.transformer import ModelCache, TransformerParams
from dsjax.runtime import fit


@struct.dataclass
class Prompts:
    """Prompts of a batch, one a row, and how each is continued."""

    tokens: Array  # [B, T], padded on the right
    lengths: Array  # [B]
    keys: Array  # [B] one a row, from which every choice of its tokens is drawn
    sampling: SamplingParams


@struct.dataclass
class State:
    """Everything a row needs to go on; `recent` and `mtp` are empty where nothing is drafted."""

    tokens: Array  # [B, S] prompt and continuation; beyond `newest` only drafts or nothing
    newest: Array  # [B] position of the newest token; the cache holds every earlier one
    keys: Array  # [B] as in Prompts
    prompt_len: Array  # [B]
    sampling: SamplingParams
    cache: ModelCache
    recent: Array  # [B, W, D] the main model's hidden states before `newest`, after the final norm
    mtp: tuple[Cache, ...]  # the past of each module


@struct.dataclass
class Emitted:
    """Output of one pass of the main model for each row: the first `count` of `tokens`."""

    tokens: Array  # [B, J+1]
    count: Array  # [B], from 1 to J+1
    logits: Array | None  # [B, J+1, V] of which they were chosen, before any penalty


def prefill(p: TransformerParams, prompts: Prompts, *, cfg: ModelConfig, backend: Backend,
            max_len: int, depth: int) -> tuple[State, Array]:
    """Read prompts and choose each row's first token, which is returned too, [B].

    `max_len` is S; `depth` is the number of MTP modules that will draft, 0 for plain decoding.
    """
    segments = segments_of(prompts)
    main = transformer.hidden(p, prompts.tokens, segments, cfg, backend, is_kept=True)
    cache = transformer.make_cache(main, max_len, backend)
    modules = tuple(
        backend.make_cache(kept, max_len) for kept in _kept_by_modules(
            p, prompts.tokens, segments, main.x, cfg, backend, depth))
    state, first = begin(p, prompts, main.x, cache, max_len, depth)
    return dataclasses.replace(state, mtp=modules), backend.layout.constrain(first, (None,))


def segments_of(prompts: Prompts) -> Array:
    """Segments [B, T] of padded prompts: 1 in a prompt, 0 beyond it."""
    at = jnp.arange(prompts.tokens.shape[1], dtype=jnp.int32)
    return (at[None] < prompts.lengths[:, None]).astype(jnp.int32)


def begin(p: TransformerParams, prompts: Prompts, x: Array, cache: ModelCache, max_len: int,
          depth: int) -> tuple[State, Array]:
    """Choose each row's first token [B] of prompts that were read: x [B, T, D], after the norm.

    The state has no past of MTP modules yet.
    """
    tokens, lengths = prompts.tokens, prompts.lengths
    row = jnp.arange(tokens.shape[0])
    last = x[row, lengths - 1]
    text = Text(tokens, lengths, lengths[:, None] - 1)
    _, targets = distributions(p, last[:, None], text, prompts.sampling)
    first = sample(keys_at(prompts.keys, lengths), targets[:, 0], prompts.sampling)
    recent = lengths[:, None] - 2 * depth + jnp.arange(2 * depth, dtype=jnp.int32)[None]
    return State(
        tokens=_fit(tokens, max_len).at[row, lengths].set(first),
        newest=lengths,
        keys=prompts.keys,
        prompt_len=lengths,
        sampling=prompts.sampling,
        cache=cache,
        recent=x[row[:, None], jnp.maximum(recent, 0)],
        mtp=(),
    ), first


def _kept_by_modules(p: TransformerParams, tokens: Array, segments: Array, previous: Array,
                     cfg: ModelConfig, backend: Backend, depth: int) -> list[Kept]:
    """Run each module over the prompts; positions whose token i+k is unknown come later."""
    embed = functools.partial(transformer.embed, p, backend=backend)
    chain = mtp.chain(p.mtp, previous, tokens, segments, embed, cfg, backend)
    return [made.kept for made in itertools.islice(chain, depth)]


def _fit(tokens: Array, length: int) -> Array:
    """Cut or pad [B, T] to [B, length]."""
    tokens = tokens[:, :length]
    return jnp.pad(tokens, ((0, 0), (0, length - tokens.shape[1])))


def keys_at(keys: Array, positions: Array) -> Array:
    """Return the key that chooses each row's token at a position. keys, positions [B] -> [B]."""
    return jax.vmap(jax.random.fold_in)(keys, positions)


def distributions(p: TransformerParams, x: Array, text: Text,
                  sampling: SamplingParams) -> tuple[Array, Array]:
    """Logits and distributions [B, T, V] of the token after each of `text.upto`. x [B, T, D]."""
    logits = transformer.head(p, x)
    return logits, probs(penalized(logits, text, sampling), sampling)


def step(p: TransformerParams, state: State, cfg: ModelConfig,
         backend: Backend) -> tuple[State, Emitted]:
    """Run every row's newest token and choose the next one."""
    token, position = newest(state)
    x, cache = transformer.hidden_cached(p, token, position, state.cache, cfg, backend)
    return choose(p, dataclasses.replace(state, cache=cache), x)


def newest(state: State) -> tuple[Array, Array]:
    """Newest token of every row and its position, [B, 1] both."""
    row = jnp.arange(state.tokens.shape[0])
    return state.tokens[row, state.newest][:, None], state.newest[:, None]


def choose(p: TransformerParams, state: State, x: Array) -> tuple[State, Emitted]:
    """Choose the token after each row's newest, whose hidden state is x [B, 1, D]."""
    row, position = jnp.arange(state.tokens.shape[0]), state.newest
    text = Text(state.tokens, state.prompt_len, position[:, None])
    logits, targets = distributions(p, x, text, state.sampling)
    chosen = sample(keys_at(state.keys, position + 1), targets[:, 0], state.sampling)
    state = dataclasses.replace(
        state,
        tokens=state.tokens.at[row, position + 1].set(chosen),
        newest=position + 1,
    )
    return state, Emitted(chosen[:, None], jnp.ones_like(position), logits)


def written_out(p: TransformerParams, state: State,
                backend: Backend) -> tuple[TransformerParams, State]:
    """Give every layer a stack of its own, if one device has room for that copy of the weights.

    Steps over 16 rows then take half the time on a CPU. They give the same numbers.
    """
    both = p.stacks, state.cache.stacks
    if (backend.layout is not ONE_DEVICE
            or not fit.has_room(sum(a.nbytes for a in jax.tree.leaves(both)))):
        return p, state
    cache = transformer.written_out(state.cache)
    return transformer.written_out(p), dataclasses.replace(state, cache=cache)


def cache_bytes_per_token(cfg: ModelConfig, backend: Backend, depth: int = 0) -> int:
    """Bytes that decoding keeps of one token in all layers, and in `depth` MTP modules."""
    one = jax.eval_shape(lambda: transformer.empty_cache(cfg, 1, 1, backend))
    sizes = [a.size * a.dtype.itemsize for a in jax.tree.leaves(one)]
    per_layer = sum(sizes) // cfg.layers
    return sum(sizes) + depth * per_layer


@struct.dataclass
class Given:
    """Tokens that a pass gave each row, and the log-probabilities they were chosen by."""

    tokens: Array  # [B, J+1], the first `count` of them
    count: Array  # [B]
    logprobs: Array  # [B, J+1] log-softmax of the model's logits, before temperature or penalties
    top_ids: Array | None  # [B, J+1, N] the likeliest tokens, where they are wanted
    top_logprobs: Array | None  # [B, J+1, N]


def given(emitted: Emitted, top: int, wants_top: Array) -> Given:
    """Add log-probabilities to a pass, and `top` likeliest tokens if they are wanted."""
    assert emitted.logits is not None, "one step hands out its logits"
    below = emitted.logits.astype(jnp.float32)
    below -= below.max(axis=-1, keepdims=True)
    mass = jnp.log(jnp.exp(below).sum(axis=-1, keepdims=True))
    tokens = jnp.maximum(emitted.tokens, 0)[..., None]
    chosen = (jnp.take_along_axis(below, tokens, axis=-1) - mass)[..., 0]
    none = [jnp.zeros((*chosen.shape, top), dtype) for dtype in (jnp.float32, jnp.int32)]
    best, ids = jax.lax.cond(wants_top, lambda a: jax.lax.top_k(a, top), lambda _: none, below)
    return Given(emitted.tokens, emitted.count, chosen, ids, best - mass)
