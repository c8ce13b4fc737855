"""The engine's three programs: admit a row, read a piece of its text into pages, decode some rows.

A row's text is read up to its newest token, which is always decoded, so that every token is chosen
in one place: by `decode.step` or a speculative round, the very ones of `generate`. Programs have
fixed shapes and all numbers that vary (slots, tables, positions, sampling) are arrays.

Axes: N slots, B rows, S positions, W = 2J recent positions, C tokens of a piece, D model, J drafts.
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
from dsjax.infer.decode import Given, State, given
from dsjax.infer.sample import SamplingParams
from dsjax.layers.backend import Backend
from dsjax.layers.cache import Cache
from dsjax.layers.paged import AS_MADE, Form, Paged, pool, route_pool
from dsjax.model import block as blocks
from dsjax.model import mtp, transformer
from dsjax.model.transformer import Counts, ModelCache, TransformerParams


@struct.dataclass
class Slots:
    """State of the rows that are served, but for their pages."""

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
    routes: Array | None = None  # [P, size, L, K] experts of every position, where they are kept


@struct.dataclass
class Served:
    """Everything that stays on the device from step to step."""

    slots: Slots
    pools: Pools
    loads: dict[str, Array] | None = None  # [1, E] of each mixture, where they are measured
    hidden: Array | None = None  # [W + B (J+1), D] of a piece, see Reading, and of W before it


@struct.dataclass
class Row:
    """A text as it enters a slot; none where the slot is beyond the last."""

    slot: Array  # []
    tokens: Array  # [S]
    newest: Array  # []
    prompt_len: Array  # []
    key: Array  # []
    sampling: SamplingParams  # of one row, leaves [1]


@struct.dataclass
class Pair:
    """A page that is copied to another."""

    source: Array  # []
    to: Array  # []


@struct.dataclass
class Piece:
    """Positions [start, stop) of a slot's text; nothing of a slot beyond the last."""

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
    reading: Reading | None = None


@struct.dataclass
class Reading:
    """Positions of rows of `advance` that read a piece of a text, as the program that decodes it.

    All rows are one slot's, J+1 positions each; as a layer writes them all before it looks at any,
    each finds those before it. A first pass is the main model's. Where modules draft, a second one
    is theirs, on the hidden states that the first left: W positions each. Tables of the one whose
    turn it is not name the spare page.
    """

    at: Array  # [B] position of a row's newest token; -1 where a row decodes, or is none
    start: Array  # [] first position of the piece
    stop: Array  # []
    is_main: Array  # [] bool
    module_tables: Array  # [B, pages a row]


def empty_pools(p: TransformerParams, cfg: ModelConfig, backend: Backend, *, pages: int, size: int,
                depth: int, form: Form = AS_MADE) -> Pools:
    """Make the pages of a model whose layers are written out."""
    kept = jax.tree.map(lambda a: jax.ShapeDtypeStruct((1, 1, *a.shape[2:]), a.dtype),
                        blocks.none_kept(cfg, 1, backend.dtype))

    def one() -> Any:
        return pool(kept, pages, size, form)

    routes = route_pool(cfg, pages, size) if backend.keep_routes else None
    return Pools({name: jax.tree.map(lambda a: a[None], one()) for name in p.stacks},
                 tuple(one() for _ in range(depth)), form, routes)


@functools.partial(jax.jit, donate_argnames="served")
def admit(served: Served, row: Row) -> Served:
    """Put a text into a slot; none of it is read yet."""
    s = served.slots

    def put(of_slots: Array, of_row: Array) -> Array:
        return of_slots.at[row.slot].set(of_row, mode="drop")

    return dataclasses.replace(served, slots=dataclasses.replace(
        s,
        tokens=put(s.tokens, row.tokens),
        newest=put(s.newest, row.newest),
        prompt_len=put(s.prompt_len, row.prompt_len),
        keys=put(s.keys, row.key),
        sampling=jax.tree.map(lambda all_, one: put(all_, one[0]), s.sampling, row.sampling),
        recent=s.recent.at[row.slot].set(0, mode="drop"),
    ))


@functools.partial(jax.jit, donate_argnames="served")
def copy(served: Served, pair: Pair) -> Served:
    """Copy a page of every layer and module."""
    pools, source, to = served.pools, pair.source, pair.to
    main = jax.tree.map(lambda a: a.at[:, to].set(a[:, source]), pools.main)
    modules, routes = jax.tree.map(lambda a: a.at[to].set(a[source]), (pools.mtp, pools.routes))
    return dataclasses.replace(served, pools=dataclasses.replace(
        pools, main=main, mtp=modules, routes=routes))


@functools.partial(jax.jit, static_argnames=("cfg", "backend", "length"), donate_argnames="served")
def read(p: TransformerParams, served: Served, piece: Piece, *, cfg: ModelConfig, backend: Backend,
         length: int) -> Served:
    """Read a piece of at most `length` positions of a slot's text into its pages.

    What follows in the program is padding: nobody looks at what it leaves before it is written
    again.
    """
    depth, table = len(served.pools.mtp), piece.table
    text, tokens, positions = piece_tokens(served.slots, piece, length)
    counts = _counts(served.loads, positions < piece.stop)
    x, cache = transformer.hidden_cached(
        p, tokens, positions, cache_of(served.pools, table, counts), cfg, backend)
    previous, modules = x, []
    for k in range(1, depth + 1):
        assert p.mtp is not None, "drafting needs MTP parameters"
        embedded = transformer.embed(p, _at(text, positions + k), backend)
        previous, past = mtp.hidden_cached(
            mtp.module(p.mtp, k - 1), previous, embedded, positions,
            Paged(served.pools.mtp[k - 1], table, served.pools.form), cfg, backend)
        modules.append(_pages(past))
    pools = dataclasses.replace(served.pools, mtp=tuple(modules), main=pages_of(cache),
                                routes=_routes(served.pools, cache, table, positions))
    return dataclasses.replace(served, slots=after_piece(served.slots, piece, x), pools=pools,
                               loads=_loads(cache))


def piece_tokens(slots: Slots, piece: Piece, length: int) -> tuple[Array, Array, Array]:
    """The text [1, S] that a piece is of; the piece's tokens and positions, [1, C] both."""
    text = slots.tokens.at[piece.slot].get(mode="clip")[None]
    positions = piece.start + jnp.arange(length, dtype=jnp.int32)[None]
    return text, _at(text, positions), positions


def after_piece(slots: Slots, piece: Piece, x: Array) -> Slots:
    """Keep the last hidden states of a piece that was read: x [1, C, D]."""
    recent = slots.recent.at[piece.slot].get(mode="clip")
    last = jax.lax.dynamic_slice_in_dim(jnp.concatenate([recent, x[0]]),
                                        piece.stop - piece.start, recent.shape[0])
    return dataclasses.replace(slots, recent=slots.recent.at[piece.slot].set(last, mode="drop"))


@functools.partial(jax.jit, static_argnames=("cfg", "backend", "top"), donate_argnames="served")
def advance(p: TransformerParams, served: Served, rows: Rows, *, cfg: ModelConfig,
            backend: Backend, top: int) -> tuple[Served, Given]:
    """Decode the newest token of some slots; `top` likeliest tokens at most are looked for."""
    s, pools, slots, tables = served.slots, served.pools, rows.slots, rows.tables
    mine = _of_rows(s, rows)
    reading, is_text, module_tables, own, hidden = rows.reading, None, tables, slots, served.hidden
    is_counted = slots < s.newest.size
    if reading is not None:
        is_text, module_tables = reading.at >= 0, reading.module_tables
        mine, hidden = _as_text(mine, is_text, reading, hidden)
        own = jnp.where(is_text, s.newest.size, slots)  # what they choose is nobody's
        is_counted &= reading.is_main | ~is_text
    is_counted = jnp.broadcast_to(is_counted[:, None], (slots.size, len(pools.mtp) + 1))
    counts = _counts(served.loads, is_counted)
    state = dataclasses.replace(
        _state(mine), cache=cache_of(pools, tables, counts),
        mtp=tuple(Paged(pages, module_tables, pools.form) for pages in pools.mtp))
    if pools.mtp:
        state, emitted = speculative.speculative_round(p, state, cfg, backend, is_text)
    else:
        state, emitted = decode.step(p, state, cfg, backend)
    after = after_rows(s, own, state)
    if reading is not None and hidden is not None:
        recent, hidden = _after_text(after.recent, state.recent, rows, hidden)
        after = dataclasses.replace(after, recent=recent)
    positions = mine.newest[:, None] + jnp.arange(len(pools.mtp) + 1, dtype=jnp.int32)[None]
    pools = dataclasses.replace(pools, main=pages_of(state.cache),
                                mtp=tuple(_pages(c) for c in state.mtp),
                                routes=_routes(pools, state.cache, tables, positions))
    served = Served(after, pools, _loads(state.cache), hidden)
    return served, given(emitted, min(top, cfg.vocab), rows.wants_top)


def rows_state(slots: Slots, rows: Rows) -> State:
    """The rows that decode, without their past."""
    return _state(_of_rows(slots, rows))


def _of_rows(slots: Slots, rows: Rows) -> Slots:
    return jax.tree.map(lambda a: a.at[rows.slots].get(mode="clip"), slots)


def _state(mine: Slots) -> State:
    return State(tokens=mine.tokens, newest=mine.newest, keys=mine.keys,
                 prompt_len=mine.prompt_len, sampling=mine.sampling, cache=ModelCache({}),
                 recent=mine.recent, mtp=())


def after_rows(slots: Slots, own: Array, state: State) -> Slots:
    """Put rows that have decoded back into their slots `own`."""
    return dataclasses.replace(
        slots,
        tokens=slots.tokens.at[own].set(state.tokens, mode="drop"),
        newest=slots.newest.at[own].set(state.newest, mode="drop"),
        recent=slots.recent.at[own].set(state.recent, mode="drop"),
    )


def _as_text(mine: Slots, is_text: Array, reading: Reading,
             hidden: Array | None) -> tuple[Slots, Array | None]:
    """Rows that read, at their positions; and before a piece, the hidden states that lead to it."""
    mine = dataclasses.replace(mine, newest=jnp.where(is_text, reading.at, mine.newest))
    if hidden is None:
        return mine, None
    width = mine.recent.shape[1]
    before = jnp.where(is_text[0] & reading.is_main, mine.recent[0], hidden[:width])
    hidden = hidden.at[:width].set(before)
    index = reading.at[:, None] - reading.start + jnp.arange(width, dtype=jnp.int32)[None]
    found = hidden.at[index].get(mode="clip")
    recent = jnp.where(is_text[:, None, None], found, mine.recent)
    return dataclasses.replace(mine, recent=recent), hidden


def _after_text(recent: Array, states: Array, rows: Rows, hidden: Array) -> tuple[Array, Array]:
    """Keep a piece's hidden states, or when its modules are through the last ones, for its slot.

    recent [N, W, D] of all slots; states [B, W, D] end with those of a row's J+1 positions.
    """
    r, width = rows.reading, states.shape[1]
    assert r is not None, "rows read"
    a_pass = width // 2 + 1
    is_text = r.at >= 0
    index = width + r.at[:, None] - r.start + jnp.arange(a_pass, dtype=jnp.int32)[None]
    index = jnp.where((is_text & r.is_main)[:, None], index, hidden.shape[0])
    hidden = hidden.at[index].set(states[:, -a_pass:], mode="drop")
    last = jax.lax.dynamic_slice_in_dim(hidden, r.stop - r.start, width)
    slot = jnp.where(is_text[0] & ~r.is_main, rows.slots[0], recent.shape[0])
    return recent.at[slot].set(last, mode="drop"), hidden


def _routes(pools: Pools, cache: ModelCache, table: Array, positions: Array) -> Array | None:
    """Write the experts that new tokens chose beside what attention keeps of them."""
    if pools.routes is None or cache.routes is None:
        return pools.routes
    chosen = jnp.moveaxis(cache.routes, 0, 2)
    found: Array = Paged(pools.routes, table).append(chosen, positions).pages
    return found


@functools.partial(jax.jit, donate_argnames="served")
def routes(served: Served, tables: Array) -> tuple[Served, Array]:
    """Hand out the experts of all positions of some tables [N, pages a row] -> [N, S, L, K]."""
    assert served.pools.routes is not None, "routes are kept"
    return served, Paged(served.pools.routes, tables).read(served.pools.routes.dtype)


@functools.partial(jax.jit, donate_argnames="served")
def measure(served: Served, _: Array) -> tuple[Served, Any]:
    """Hand out the loads of experts, and count anew."""
    zeros = jax.tree.map(jnp.zeros_like, served.loads)
    return dataclasses.replace(served, loads=zeros), served.loads


def cache_of(pools: Pools, table: Array, counts: Counts | None = None) -> ModelCache:
    """The past of every layer, through one table."""
    return ModelCache({name: Paged(pages, table[None], pools.form)
                       for name, pages in pools.main.items()}, counts)


def pages_of(cache: ModelCache) -> dict[str, Any]:
    """Pages of every layer."""
    return {name: _pages(c) for name, c in cache.stacks.items()}


def _counts(loads: dict[str, Array] | None, is_real: Array) -> Counts | None:
    return None if loads is None else Counts(loads, is_real)


def _loads(cache: ModelCache) -> dict[str, Array] | None:
    return None if cache.counts is None else cache.counts.loads


def _pages(cache: Cache) -> Any:
    assert isinstance(cache, Paged), "a cache in pages stays one"
    return cache.pages


def _at(text: Array, positions: Array) -> Array:
    """Tokens [1, S] at positions [1, C], the last one beyond the end."""
    return jnp.take_along_axis(text, positions, axis=1, mode="clip")
