"""The inputs of a rank in every tick, and the one fixed memory it works in.

`State` is everything that lives from tick to tick; the program gave out its buffers. A buffer of
residuals holds a whole stage of one microbatch.

Axes: A buffers, N layers of a stage, M microbatches, B rows, T time, D model, E experts.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array, lax

from dsjax.config.model import Stack
from dsjax.layers.backend import Backend
from dsjax.model.loss import Batch, LossParts
from dsjax.params import Tree
from dsjax.pipeline.instructions import Program
from dsjax.pipeline.split_vjp import Split, split
from dsjax.pipeline.stage_work import Layer, Side, StageLayout, varying


@dataclasses.dataclass(frozen=True)
class Group:
    """The layers of one stack on this rank: parameters, and the three parts of their gradient."""

    stack: Stack
    layout: StageLayout
    params: Tree  # [chunks * N, ...]
    quantized: Tree  # their low-precision form, or None
    count: Array  # [chunks]
    rows: Array  # [] of the whole step
    mixture: Array | None  # [chunks * N] number of each among the mixture layers
    split: Split

    @property
    def name(self) -> str:
        """The stack's name."""
        return self.stack.name


@dataclasses.dataclass(frozen=True)
class Rank:
    """The inputs of a rank in every tick."""

    program: Program
    groups: tuple[Group, ...]
    ends: Any
    tail: Callable
    batch: Batch  # [M, B, T+1]
    backend: Backend
    is_unrolled: bool  # whether ticks that pair work are written out for the compiler

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of a microbatch's activations, [B, T, D]."""
        _, rows, length = self.batch.tokens.shape
        return rows, length - 1, self.ends.embed.shape[1]


@struct.dataclass
class State:
    """Memory that lives from tick to tick."""

    residuals_b: dict[str, list[Array]]  # [A, N, ...] of F, for B and W
    residuals_w: dict[str, list[Array]]  # [A, N, ...] of B, for W
    inbox_x: Array  # [A, B, T, D]
    inbox_gradient: Array  # [A, B, T, D]
    grads: dict[str, Tree]  # [chunks * N, ...]
    d_ends: Any
    total: Array
    parts: LossParts
    loads: dict[str, Array]  # [chunks * N, E] of stacks with experts
    rounds: Array
    executed: Array  # [branches]


def split_layer(layer: Layer, params: Tree, side: Side, x: Array) -> Split:
    """Cut the gradient of a layer in three; params, side and x [B, T, D] give shapes."""
    dy = varying((x, jnp.zeros(())))
    return split(lambda p, x, side: varying(layer(p, x, side)), params, x, side, dy)


def start(rank: Rank, x: Array, experts: int) -> State:
    """Empty memory. x [B, T, D] gives its shape."""
    program = rank.program
    residuals_b, residuals_w = {}, {}
    for g in rank.groups:
        of_f, of_b = jax.eval_shape(functools.partial(_residuals, g, x, rank))
        residuals_b[g.name] = [_empty(a, program.buffers_b, g.layout.size) for a in of_f]
        residuals_w[g.name] = [_empty(a, program.buffers_w, g.layout.size) for a in of_b]
    boxes = [jnp.zeros((size, *x.shape), x.dtype) for size in program.inbox]
    (_, parts), (d_ends, _) = jax.eval_shape(rank.tail, rank.ends, x, at(rank.batch, 0))
    return State(
        residuals_b=residuals_b, residuals_w=residuals_w,
        inbox_x=boxes[0], inbox_gradient=boxes[1],
        grads={g.name: zeros(g.params) for g in rank.groups}, d_ends=zeros(d_ends),
        total=jnp.zeros(()), parts=zeros(parts),
        loads={g.name: jnp.zeros((g.layout.layer.shape[1], experts))
               for g in rank.groups if g.stack.is_moe},
        rounds=jnp.zeros(()), executed=jnp.zeros(len(program.branches), jnp.int32))


def _residuals(g: Group, x: Array, rank: Rank) -> tuple[list[Array], list[Array]]:
    """Residuals of one layer: of F, and of B for W."""
    (params, side), one = layer_at(g, 0, 0, at(rank.batch, 0)), varying(jnp.ones(()))
    _, _, for_b = g.split.forward(params, x, side)
    return for_b, g.split.input_gradient(params, side, for_b, (x, one))[1]


def _empty(a: Any, buffers: int, layers: int) -> Array:
    return jnp.zeros((buffers, layers, *a.shape), a.dtype)


def zeros(tree: Tree) -> Tree:
    """Zeros of the shapes and dtypes of a tree."""
    return jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), tree)


def layer_at(g: Group, chunk: Array | int, j: Array | int, part: Batch) -> tuple[Tree, Side]:
    """Parameters of layer j of a chunk, and what else it reads of a microbatch."""
    place = jnp.maximum(chunk, 0) * g.layout.size + j
    params, quantized = at((g.params, g.quantized), place)
    routes = None
    if part.routes is not None and g.mixture is not None:
        which = at(g.mixture, place)
        routes = lax.dynamic_index_in_dim(part.routes, which, 1, keepdims=False)[:, :-1]
    return params, Side(part.segments[:, :-1], g.rows, quantized, routes)


def at(tree: Tree, index: Array | int) -> Tree:
    """One of the leading dim; the first where the index is -1 and the result is not used."""
    index = jnp.maximum(index, 0)
    return jax.tree.map(lambda a: lax.dynamic_index_in_dim(a, index, 0, keepdims=False), tree)


def put(a: Array, index: Array, new: Array) -> Array:
    """Write one of the leading dim."""
    return lax.dynamic_update_index_in_dim(a, new, jnp.maximum(index, 0), 0)


def put_if_any(a: Array, index: Array, new: Array) -> Array:
    """As `put`; nothing where the index is -1."""
    return put(a, index, jnp.where(index >= 0, new, at(a, index)))
