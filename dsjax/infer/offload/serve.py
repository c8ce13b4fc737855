"""The engine's programs for a model whose routed experts lie in a cache.

As `engine.steps`, cut at the model's layers, which `Layers` runs one by one over the same pages.
They are called with what the compiled programs are called with.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
from jax import Array

from dsjax.config.model import ModelConfig
from dsjax.infer import decode
from dsjax.infer.decode import Given, State, given
from dsjax.infer.engine import steps
from dsjax.infer.engine.steps import Piece, Rows, Served, Slots
from dsjax.infer.offload.cache import ExpertCache
from dsjax.infer.offload.layers import Layers
from dsjax.layers.backend import Backend
from dsjax.model import transformer
from dsjax.model.transformer import ModelCache, TransformerParams


class Programs:
    """Programs of one model; each compiles what it is made of when it is first called."""

    def __init__(self, params: TransformerParams, cfg: ModelConfig, backend: Backend,
                 cache: ExpertCache) -> None:
        """Take parameters as `load` makes them, and a backend that attends over pages."""
        self.cfg, self.backend = cfg, backend
        self.layers = Layers(params, cfg, backend, cache)
        self._ends = dataclasses.replace(params, stacks={})

    def admit(self, _: Any, served: Served, row: steps.Row) -> Served:
        """Put a text into a slot."""
        return steps.admit(served, row)

    def copy(self, _: Any, served: Served, pair: steps.Pair) -> Served:
        """Copy a page of every layer."""
        return steps.copy(served, pair)

    def advance(self, _: Any, served: Served, rows: Rows, *, top: int) -> tuple[Served, Given]:
        """Decode the newest token of some slots, as `steps.advance` does."""
        state, x, positions = _begin_rows(self._ends, served.slots, rows, backend=self.backend)
        count = served.slots.newest.shape[0]
        is_real = (np.asarray(rows.slots) < count)[:, None]
        x, past = self.layers.step(x, positions, _past(served, rows.tables), is_real)
        slots, given = _end_rows(self._ends, served.slots, rows, state, x,
                                 top=min(top, self.cfg.vocab))
        return _with(served, slots, past), given

    def read(self, _: Any, served: Served, piece: Piece, *, length: int) -> Served:
        """Read a piece of a slot's text into its pages, as `steps.read` does."""
        x, positions = _begin_piece(self._ends, served.slots, piece, length=length,
                                    backend=self.backend)
        is_real = np.asarray(positions) < np.asarray(piece.stop)
        x, past = self.layers.step(x, positions, _past(served, piece.table), is_real)
        return _with(served, _end_piece(served.slots, piece, x), past)


def _past(served: Served, table: Array) -> ModelCache:
    """The pages of every layer, each with a table of its own: layers are donated one by one."""
    own: Any = np.asarray(table)
    return steps.cache_of(served.pools, own)


def _with(served: Served, slots: Slots, past: ModelCache) -> Served:
    return Served(slots, dataclasses.replace(served.pools, main=steps.pages_of(past)))


@functools.partial(jax.jit, static_argnames="backend")
def _begin_rows(p: TransformerParams, slots: Slots, rows: Rows, *,
                backend: Backend) -> tuple[State, Array, Array]:
    state = steps.rows_state(slots, rows)
    tokens, positions = decode.newest(state)
    return state, transformer.embed(p, tokens, backend), positions


@functools.partial(jax.jit, static_argnames="top", donate_argnames="slots")
def _end_rows(p: TransformerParams, slots: Slots, rows: Rows, state: State, x: Array, *,
              top: int) -> tuple[Slots, Given]:
    state, emitted = decode.choose(p, state, x)
    return steps.after_rows(slots, rows.slots, state), given(emitted, top, rows.wants_top)


@functools.partial(jax.jit, static_argnames=("length", "backend"))
def _begin_piece(p: TransformerParams, slots: Slots, piece: Piece, *, length: int,
                 backend: Backend) -> tuple[Array, Array]:
    _, tokens, positions = steps.piece_tokens(slots, piece, length)
    return transformer.embed(p, tokens, backend), positions


@functools.partial(jax.jit, donate_argnames="slots")
def _end_piece(slots: Slots, piece: Piece, x: Array) -> Slots:
    return steps.after_piece(slots, piece, x)
