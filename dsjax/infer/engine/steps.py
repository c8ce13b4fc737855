"""The engine's three programs: admit a row, read a piece of its text into pages, decode some rows.

A row's text is read up to its newest token, which is always decoded, so that every token is chosen
in one place: by `decode.step` or a speculative round, the very ones of `generate`. Programs have
fixed shapes and all numbers that vary (slots, tables, positions, sampling) are arrays.

Axes: N slots, B rows of one program, S positions, W = 2J recent positions, C tokens of a piece, D
model, J drafts.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from dsjax.config.model import ModelConfig
from dsjax.infer import decode, speculative
from dsjax.infer.decode import Emitted, State
from dsjax.infer.sample import SamplingParams
from dsjax.layers.backend import Backend
from dsjax.layers.cache import Cache
from dsjax.layers.paged import AS_MADE, Form, Paged, pool
from dsjax.model import block as blocks
from dsjax.model import mtp, transformer
from dsjax.model.transformer import ModelCache, TransformerParams


@struct.dataclass
class Slots:
    """What the device knows of the rows that are served, but their pages."""

    tokens: Array  # [N, S] a row's text; beyond `newest` only drafts or nothing
    newest: Array  # [N] position of the newest token; pages hold every earlier one
    prompt_len: Array  # [N]
    keys: Array  # [N] from which every choice of a row's tokens is drawn
    sampling: SamplingParams
    recent: Array  # [N, W, D] the main model's hidden states before `newest`


@struct.dataclass
class Pools:
    """Pages of every layer and of every MTP module that drafts; one table serves all."""

    main: dict[str, Any]  # by layer, leaves lead with [1, P]
    mtp: tuple[Any, ...]
    form: Form = struct.field(pytree_node=False, default=AS_MADE)


@struct.dataclass
class Served:
    """Everything that stays on the device from step to step."""

    slots: Slots
    pools: Pools


@struct.dataclass
class Row:
    """A text as it enters a slot."""

    tokens: Array  # [S]
    newest: Array  # []
    prompt_len: Array  # []
    key: Array  # []
    sampling: SamplingParams  # of one row, leaves [1]


@struct.dataclass
class Piece:
    """Positions [start, stop) of a slot's text."""

    slot: Array  # []
    table: Array  # [1, pages a row]
    start: Array  # []
    stop: Array  # []


@struct.dataclass
class Rows:
    """Slots that decode; those beyond the last are padding, which reads and writes the spare page.
    """

    slots: Array  # [B]
    tables: Array  # [B, pages a row]
    wants_top: Array  # [] bool: somebody asks for the likeliest tokens


def empty_pools(p: TransformerParams, cfg: ModelConfig, backend: Backend, *, pages: int, size: int,
                depth: int, form: Form = AS_MADE) -> Pools:
    """Make the pages of a model whose layers are written out."""
    kept = jax.tree.map(lambda a: jax.ShapeDtypeStruct((1, 1, *a.shape[2:]), a.dtype),
                        blocks.none_kept(cfg, 1, backend.dtype))

    def one() -> Any:
        return pool(kept, pages, size, form)

    return Pools({name: jax.tree.map(lambda a: a[None], one()) for name in p.stacks},
                 tuple(one() for _ in range(depth)), form)


@functools.partial(jax.jit, donate_argnames="served")
def admit(served: Served, slot: Array, row: Row) -> Served:
    """Put a text into a slot; none of it is read yet."""
    s = served.slots
    sampling = jax.tree.map(lambda all_, one: all_.at[slot].set(one[0]), s.sampling, row.sampling)
    return dataclasses.replace(served, slots=dataclasses.replace(
        s,
        tokens=s.tokens.at[slot].set(row.tokens),
        newest=s.newest.at[slot].set(row.newest),
        prompt_len=s.prompt_len.at[slot].set(row.prompt_len),
        keys=s.keys.at[slot].set(row.key),
        sampling=sampling,
        recent=s.recent.at[slot].set(0),
    ))


@functools.partial(jax.jit, donate_argnames="served")
def copy(served: Served, source: Array, to: Array) -> Served:
    """Copy a page of every layer and module."""
    pools = served.pools
    main = jax.tree.map(lambda a: a.at[:, to].set(a[:, source]), pools.main)
    modules = jax.tree.map(lambda a: a.at[to].set(a[source]), pools.mtp)
    return dataclasses.replace(served, pools=dataclasses.replace(pools, main=main, mtp=modules))


@functools.partial(jax.jit, static_argnames=("cfg", "backend", "length"), donate_argnames="served")
def read(p: TransformerParams, served: Served, piece: Piece, *, cfg: ModelConfig, backend: Backend,
         length: int) -> Served:
    """Read a piece of at most `length` positions of a slot's text into its pages.

    What follows in the program is padding: nobody looks at what it leaves before it is written
    again.
    """
    depth, table = len(served.pools.mtp), piece.table
    tokens, positions = piece_tokens(served.slots, piece, length)
    x, cache = transformer.hidden_cached(
        p, tokens, positions, cache_of(served.pools, table), cfg, backend)
    previous, modules = x, []
    for k in range(1, depth + 1):
        assert p.mtp is not None, "drafting needs MTP parameters"
        text = served.slots.tokens[piece.slot][None]
        embedded = transformer.embed(p, _at(text, positions + k), backend)
        previous, past = mtp.hidden_cached(
            mtp.module(p.mtp, k - 1), previous, embedded, positions,
            Paged(served.pools.mtp[k - 1], table, served.pools.form), cfg, backend)
        modules.append(_pages(past))
    pools = dataclasses.replace(served.pools, mtp=tuple(modules), main=pages_of(cache))
    return Served(after_piece(served.slots, piece, x), pools)


def piece_tokens(slots: Slots, piece: Piece, length: int) -> tuple[Array, Array]:
    """Tokens and positions of a piece, [1, C] both."""
    positions = piece.start + jnp.arange(length, dtype=jnp.int32)[None]
    return _at(slots.tokens[piece.slot][None], positions), positions


def after_piece(slots: Slots, piece: Piece, x: Array) -> Slots:
    """Keep the last hidden states of a piece that was read: x [1, C, D]."""
    recent = slots.recent[piece.slot]
    last = jax.lax.dynamic_slice_in_dim(jnp.concatenate([recent, x[0]]), piece.stop - piece.start,
                                        recent.shape[0])
    return dataclasses.replace(slots, recent=slots.recent.at[piece.slot].set(last))


@functools.partial(jax.jit, static_argnames=("cfg", "backend", "top"), donate_argnames="served")
def advance(p: TransformerParams, served: Served, rows: Rows, *, cfg: ModelConfig,
            backend: Backend, top: int) -> tuple[Served, Given]:
    """Decode the newest token of some slots; `top` likeliest tokens at most are looked for."""
    pools, tables = served.pools, rows.tables
    state = dataclasses.replace(
        rows_state(served.slots, rows), cache=cache_of(pools, tables),
        mtp=tuple(Paged(pages, tables, pools.form) for pages in pools.mtp))
    one = speculative.speculative_round if pools.mtp else decode.step
    state, emitted = one(p, state, cfg, backend)
    pools = dataclasses.replace(pools, main=pages_of(state.cache),
                                mtp=tuple(_pages(c) for c in state.mtp))
    return (Served(after_rows(served.slots, rows, state), pools),
            given(emitted, min(top, cfg.vocab), rows.wants_top))


def rows_state(slots: Slots, rows: Rows) -> State:
    """The rows that decode, without their past."""
    mine = jax.tree.map(lambda a: a.at[rows.slots].get(mode="clip"), slots)
    return State(
        tokens=mine.tokens,
        newest=mine.newest,
        keys=mine.keys,
        prompt_len=mine.prompt_len,
        sampling=mine.sampling,
        cache=ModelCache({}),
        recent=mine.recent,
        mtp=(),
    )


def after_rows(slots: Slots, rows: Rows, state: State) -> Slots:
    """Put rows that have decoded back into their slots."""
    return dataclasses.replace(
        slots,
        tokens=slots.tokens.at[rows.slots].set(state.tokens, mode="drop"),
        newest=slots.newest.at[rows.slots].set(state.newest, mode="drop"),
        recent=slots.recent.at[rows.slots].set(state.recent, mode="drop"),
    )


@struct.dataclass
class Given:
    """What a pass gave each row, and the log-probabilities it was chosen by."""

    tokens: Array  # [B, J+1], the first `count` of them
    count: Array  # [B]
    logprobs: Array  # [B, J+1] log-softmax of the model's logits, before temperature or penalties
    top_ids: Array  # [B, J+1, N] the likeliest tokens
    top_logprobs: Array  # [B, J+1, N]


def given(emitted: Emitted, top: int, wants_top: Array) -> Given:
    """What a pass gave, with the log-probabilities of `top` likeliest tokens if they are wanted."""
    assert emitted.logits is not None, "one step hands out its logits"
    all_ = jax.nn.log_softmax(emitted.logits.astype(jnp.float32))
    chosen = jnp.take_along_axis(all_, jnp.maximum(emitted.tokens, 0)[..., None], axis=-1)[..., 0]
    none = tuple(jnp.zeros((*chosen.shape, top), dtype) for dtype in (all_.dtype, jnp.int32))
    best, ids = jax.lax.cond(wants_top, lambda a: tuple(jax.lax.top_k(a, top)), lambda _: none,
                             all_)
    return Given(emitted.tokens, emitted.count, chosen, ids, best)


def cache_of(pools: Pools, table: Array) -> ModelCache:
    """The past of every layer, through one table."""
    return ModelCache({name: Paged(pages, table[None], pools.form)
                       for name, pages in pools.main.items()})


def pages_of(cache: ModelCache) -> dict[str, Any]:
    """Pages of every layer."""
    return {name: _pages(c) for name, c in cache.stacks.items()}


def _pages(cache: Cache) -> Any:
    assert isinstance(cache, Paged), "a cache in pages stays one"
    return cache.pages


def _at(text: Array, positions: Array) -> Array:
    """Tokens [1, S] at positions [1, C], the last one beyond the end."""
    return jnp.take_along_axis(text, positions, axis=1, mode="clip")
