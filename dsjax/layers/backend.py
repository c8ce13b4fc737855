"""Functions that vary with the machine, handed to layers (never a string or a flag).

`Precision` says how operands are quantized and multiplied, `Layout` where arrays lie and how they
move; `attend` and `dispatch` are functions a kernel or a mesh replaces. No layer changes.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Protocol

import jax.numpy as jnp
from jax import Array

from dsjax.layers.adapted import LowRank
from dsjax.layers.cache import Cache, MakeCache, contiguous
from dsjax.layers.remat import Rematerialize, keep_all
from dsjax.numerics.precision import FP32, Matrix, Precision
from dsjax.numerics.wide import wide
from dsjax.ops import attention, attention_cached, expert_mlp
from dsjax.ops import experts as op
from dsjax.ops.expert_mlp import ExpertMLP
from dsjax.ops.linear import linear
from dsjax.params import Tree

Attend = Callable[[Array, Array, Array, Array, float], Array]
"""q [B, H, T, N], k, v, segments [B, T], scale -> [B, H, T, U]; causal, within segments."""

AttendCached = Callable[[tuple[Array, ...], Cache, Array, float], Array]
"""Parts of queries [B, T, H, N], a cache that holds their tokens, positions [B, T], scale ->
[B, T, H, U]; each query looks at positions up to its own."""


class Dispatch(Protocol):
    """Tokens to the devices of their experts and back: the outer two of permute, MLP, combine.

    x [T, D], experts and weights [T, K] -> the weighted sums [T, D], and rounds of exchange beyond
    the first []. `mlp` multiplies where the experts are.
    """

    def __call__(self, x: Array, experts: Array, weights: Array, w_gate_up: Matrix,
                 w_down: Matrix, mlp: ExpertMLP) -> tuple[Array, Array]:
        """Send tokens to their experts and add up what comes back."""
        ...


Constrain = Callable[[Array, tuple[str | None, ...]], Array]
"""An activation and its logical axes -> the same, where a mesh wants it."""

Move = Callable[[Tree, Tree], Tree]
"""A tree of parameters, or of their quantized forms, and its Specs -> the tree in another place."""

Rows = Callable[..., Tree]
"""A function f, a tree it reads whole, and arrays that lead with rows -> f(whole, *rows)."""


def _same(x: Any, about: Any = None) -> Any:
    return x


def _all_rows(f: Callable[..., Tree], whole: Tree, *rows: Tree) -> Tree:
    """On one device all rows are here."""
    return f(whole, *rows)


@dataclasses.dataclass(frozen=True)
class Layout:
    """Placement of arrays and their moves between devices. On one device nothing moves."""

    constrain: Constrain = _same
    gather: Callable[[Matrix], Matrix] = _same  # a layer's weight, whole on every device
    gather_params: Move = _same  # parameters from where they rest to where a step uses them
    reduce_scatter_grads: Move = _same  # gradients to where their parameters rest
    own_rows: Callable[[Precision], Precision] = _same  # products of each device's own rows
    map_rows: Rows = _all_rows  # results lead with rows: each device makes its own
    psum_rows: Rows = _all_rows  # results are sums over rows: each device's, added up


ONE_DEVICE = Layout()


def attend_read(queries: tuple[Array, ...], cache: Cache, positions: Array, scale: float) -> Array:
    """Attend to what a cache reads, whatever the cache is."""
    past = cache.read(queries[0].dtype)
    return attention_cached.attend_cached(queries, past.keys, past.values, positions, scale)


@dataclasses.dataclass(frozen=True)
class Backend:
    """Everything in which machines differ, handed to layers; `runtime.backend` chooses it."""

    precision: Precision
    attend: Attend  # the expanded form, over rows
    expert_mlp: ExpertMLP
    dispatch: Dispatch
    layout: Layout = ONE_DEVICE
    dtype: jnp.dtype = dataclasses.field(default_factory=lambda: jnp.dtype(jnp.float32))
    """Of activations."""
    loss_chunk: int = 128
    interleave: Rows = _all_rows  # a layer over rows, or over two halves that overlap
    remat: Rematerialize = keep_all  # which of a layer's values wait for the backward pass
    unroll: int = 1  # layers that a scan writes out at a time
    attend_cached: AttendCached = attend_read  # the absorbed form, over a cache
    make_cache: MakeCache = contiguous
    keep_routes: bool = False  # hand out each token's experts, in the router's statistics
    keep_gates: bool = False  # hand out experts' sums of routing weights, there too

    def linear(self, x: Array, w: Matrix | LowRank, contract: int = 1) -> Array:
        """Sum the last `contract` dims of x [..., K] against the first of w [K, ...]."""
        return self._product(x, w, contract, self.precision)

    def linear_high(self, x: Array, w: Matrix | LowRank, contract: int = 1) -> Array:
        """As `linear`, for matrices that stay out of 8 bits."""
        return self._product(x, w, contract, self.precision.high or self.precision)

    def o_proj(self, x: Array, w: Matrix | LowRank, contract: int = 2) -> Array:
        """Project attention's heads x [..., H, U]; V3 keeps this input in 12 bits."""
        return self._product(x, w, contract, self.precision.o_proj or self.precision)

    def _product(self, x: Array, w: Matrix | LowRank, contract: int,
                 precision: Precision) -> Array:
        if isinstance(w, LowRank):
            added = self.linear_high(self.linear_high(x, w.a, contract), w.b)
            y = self._product(x, w.base, contract, precision)
            return y.reshape(added.shape) + w.scale * added
        own = self.layout.own_rows(precision)
        return linear(x, self.layout.gather(w), contract, precision=own)

    @property
    def loss_dtype(self) -> jnp.dtype:
        """Dtype of the operands of the head's product."""
        return self.precision.operand_dtype or wide(self.dtype)


def single(precision: Precision = FP32, dtype: jnp.dtype | type = jnp.float32) -> Backend:
    """A backend for one device in the given precision."""
    return Backend(
        precision=precision,
        attend=functools.partial(_attend, is_low=precision.operand_dtype is not None),
        expert_mlp=expert_mlp.batched(precision),
        dispatch=dispatch,
        dtype=jnp.dtype(dtype),
    )


def _attend(q: Array, k: Array, v: Array, segments: Array, scale: float, is_low: bool) -> Array:
    return attention.attend(q, k, v, segments, scale, 128, is_low)


def dispatch(x: Array, experts: Array, weights: Array, w_gate_up: Matrix, w_down: Matrix,
             mlp: ExpertMLP) -> tuple[Array, Array]:
    """The single device's `Dispatch`: all experts are here."""
    y = op.experts_batched(x, experts, weights, w_gate_up, w_down, mlp=mlp)
    return y, jnp.zeros(())
