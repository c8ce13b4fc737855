"""What varies with the machine, handed to layers as functions (never as a string or a flag).

The defaults run on one device. Expert parallelism replaces `dispatch`, a mesh `constrain`, a
precision `linear` and `dispatch`; no layer changes.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Protocol

import jax.numpy as jnp
from jax import Array

from dsjax.layers.cache import Cache, MakeCache, contiguous
from dsjax.layers.remat import Rematerialize, keep_all
from dsjax.numerics import precision as numerics
from dsjax.numerics.precision import Matrix, Precision
from dsjax.numerics.wide import wide
from dsjax.ops import attention, grouped
from dsjax.ops.linear import linear
from dsjax.params import Tree


class Linear(Protocol):
    """x [..., K] against w [K, ...], the last `contract` dims of x against the first of w."""

    def __call__(self, x: Array, w: Matrix, contract: int = 1) -> Array:
        """Multiply."""
        ...


Attend = Callable[[Array, Array, Array, Array, float], Array]
"""q [B, H, T, N], k, v, segments [B, T], scale -> [B, H, T, U]; causal, within segments."""

AttendCached = Callable[[tuple[Array, ...], Cache, Array, float], Array]
"""Parts of queries [B, T, H, N], a cache that holds their tokens, positions [B, T], scale ->
[B, T, H, U]; each query looks at positions up to its own."""


class Dispatch(Protocol):
    """x [T, D], experts [T, K], weights [T, K] -> the weighted sum [T, D], and [] rounds of
    exchange beyond the first.
    """

    def __call__(self, x: Array, experts: Array, weights: Array, w_gate_up: Matrix,
                 w_down: Matrix) -> tuple[Array, Array]:
        """Send tokens to their experts and add up what comes back."""
        ...


Constrain = Callable[[Array, tuple[str | None, ...]], Array]
"""Name the logical axes of an activation, so that a mesh may place it."""

Move = Callable[[Tree, Tree], Tree]
"""A tree of parameters, or of what is held of them, and its Specs -> the tree in another place."""


AddUp = Callable[..., Tree]
"""A function f, what it reads whole, and arrays that lead with rows -> f(whole, *rows), a tree of
sums over rows: each device may sum over its own, and all add theirs once at the end."""

ByRow = Callable[..., Tree]
"""A function f, a tree it reads whole, and arrays that lead with rows -> f(whole, *rows), a tree of
arrays that lead with rows: each device makes its own."""


def at_once(f: Callable[..., Tree], whole: Tree, *rows: Array) -> Tree:
    """The single device's `add_up` and `by_row`: all rows are here."""
    return f(whole, *rows)


def leave(x: Array, axes: tuple[str | None, ...]) -> Array:
    """The single device's `constrain`: nothing to place."""
    return x


def stay(tree: Tree, specs: Tree) -> Tree:
    """The single device's `place` and `settle`: parameters rest where they are used."""
    return tree


def attend_read(queries: tuple[Array, ...], cache: Cache, positions: Array, scale: float) -> Array:
    """Attend to what a cache reads, whatever the cache is."""
    past = cache.read(queries[0].dtype)
    return attention.attend_cached(queries, past.keys, past.values, positions, scale)


@dataclasses.dataclass(frozen=True)
class Backend:
    """The functions a layer calls where machines differ; `dtype` is that of activations,
    `loss_dtype` that of the operands of the head's product."""

    linear: Linear
    high: Linear  # for matrices that stay out of 8 bits
    o_proj: Linear  # the projection after attention, whose input V3 keeps in 12 bits
    attend: Attend  # the expanded form, over rows
    dispatch: Dispatch
    constrain: Constrain
    precision: Precision
    dtype: jnp.dtype = dataclasses.field(default_factory=lambda: jnp.dtype(jnp.float32))
    loss_dtype: jnp.dtype = dataclasses.field(default_factory=lambda: jnp.dtype(jnp.float32))
    loss_chunk: int = 128
    add_up: AddUp = at_once
    by_row: ByRow = at_once
    place: Move = stay  # parameters from where they rest to where a step uses them
    settle: Move = stay  # gradients to where their parameters rest
    interleave: ByRow = at_once  # a layer over rows, or over two halves that overlap
    remat: Rematerialize = keep_all  # which of a layer's values wait for the backward pass
    unroll: int = 1  # layers that a scan writes out at a time
    attend_cached: AttendCached = attend_read  # the absorbed form, over a cache
    make_cache: MakeCache = contiguous


HIGH = ("fp32", "fp64")  # products that keep attention and the head out of bfloat16


def single(precision: Precision = numerics.FP32, dtype: jnp.dtype | type = jnp.float32) -> Backend:
    """A backend for one device in the given precision."""
    is_low = precision.name not in HIGH
    high = numerics.BF16 if is_low else precision
    return Backend(
        linear=functools.partial(linear, precision=precision),
        high=functools.partial(linear, precision=high),
        o_proj=functools.partial(linear, precision=precision.o_proj or precision),
        attend=functools.partial(_attend, is_low=is_low),
        dispatch=functools.partial(_dispatch, precision=precision),
        constrain=leave,
        precision=precision,
        dtype=jnp.dtype(dtype),
        loss_dtype=jnp.dtype(jnp.bfloat16) if is_low else wide(dtype),
    )


def _attend(q: Array, k: Array, v: Array, segments: Array, scale: float, is_low: bool) -> Array:
    return attention.attend(q, k, v, segments, scale, 128, is_low)


def _dispatch(x: Array, experts: Array, weights: Array, w_gate_up: Matrix, w_down: Matrix, *,
              precision: Precision) -> tuple[Array, Array]:
    y = grouped.experts_batched(x, experts, weights, w_gate_up, w_down, precision=precision)
    return y, jnp.zeros(())
