"""What a rank of a pipeline reads in every slot, and the one fixed memory it works in.

`State` is everything that lives from slot to slot; the program gave out its places. Places of
activations and of what W still needs hold a whole stage of one microbatch.

Axes: A places, N layers of a stage, M microbatches, B rows, T time, D model, E experts.
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
from dsjax.pipeline.stage_work import Layer, Room, Side, varying

Flag = Array | bool


@dataclasses.dataclass(frozen=True)
class Group:
    """The layers of one kind on this rank: weights, and the parts of their gradient."""

    stack: Stack
    room: Room
    weights: Tree  # [chunks * N, ...]
    held: Tree
    count: Array  # [chunks]
    rows: Array  # [] of the whole step
    parts: Split

    @property
    def name(self) -> str:
        """The stack's name."""
        return self.stack.name


@dataclasses.dataclass(frozen=True)
class Rank:
    """What a rank reads in every slot."""

    program: Program
    groups: tuple[Group, ...]
    ends: Any
    tail: Callable
    batch: Batch  # [M, B, T+1]
    backend: Backend
    is_open: bool  # whether slots that pair work are laid open to the compiler

    @property
    def is_masked(self) -> bool:
        """Whether every slot computes all there is."""
        return self.program.steps.lanes


@struct.dataclass
class State:
    """What lives from slot to slot."""

    stored: dict[str, list[Array]]  # [A, N, ...] activations
    owed: dict[str, list[Array]]  # [A, N, ...] what W needs of B
    inbox_x: Array  # [A, B, T, D]
    inbox_gradient: Array  # [A, B, T, D]
    grads: dict[str, Tree]  # [chunks * N, ...]
    d_ends: Any
    total: Array
    parts: LossParts
    loads: dict[str, Array]  # [chunks * N, E] of stacks with experts
    rounds: Array
    executed: Array  # [branches]


def group(stack: Stack, room: Room, weights: Tree, held: Tree, count: Array, rows: Array,
          segments: Array, layer: Layer, x: Array) -> Group:
    """Cut the gradient of a rank's layers; segments [B, T] and x [B, T, D] give shapes."""
    first = at((weights, held), 0)
    side = Side(segments, rows, first[1])
    dy = varying((x, jnp.zeros(())))
    parts = split(lambda p, x, side: varying(layer(p, x, side)), first[0], x, side, dy)
    return Group(stack, room, weights, held, count, rows, parts)


def start(rank: Rank, x: Array, experts: int) -> State:
    """Empty memory. x [B, T, D] gives its shape."""
    program = rank.program
    stored, owed = {}, {}
    for g in rank.groups:
        kept, late = jax.eval_shape(functools.partial(_once, g, x, rank))
        stored[g.name] = [_room(a, program.activations, g.room.size) for a in kept]
        owed[g.name] = [_room(a, program.owed, g.room.size) for a in late]
    boxes = [jnp.zeros((size, *x.shape), x.dtype) for size in program.inbox]
    grads = {g.name: zeros(g.weights) for g in rank.groups}
    loads = {g.name: jnp.zeros((g.room.layer.shape[1], experts)) for g in rank.groups
             if g.stack.is_moe}
    part = jax.tree.map(lambda a: a[0], rank.batch)
    (total, parts), (d_ends, _) = jax.eval_shape(rank.tail, rank.ends, x, part)
    del total
    return State(
        stored=stored, owed=owed, inbox_x=boxes[0], inbox_gradient=boxes[1], grads=grads,
        d_ends=zeros(d_ends), total=jnp.zeros(()), parts=zeros(parts),
        loads=loads, rounds=jnp.zeros(()),
        executed=jnp.zeros(len(program.branches), jnp.int32))


def _once(g: Group, x: Array, rank: Rank) -> tuple[list[Array], list[Array]]:
    """What one layer stores and owes."""
    (weights, side), one = layer_at(g, rank, 0, 0), varying(jnp.ones(()))
    _, _, stored = g.parts.forward(weights, x, side)
    return stored, g.parts.input_gradient(weights, side, stored, (x, one))[1]


def zeros(tree: Tree) -> Tree:
    """Zeros of the shapes and dtypes of a tree."""
    return jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), tree)


def _room(a: Any, places: int, layers: int) -> Array:
    return jnp.zeros((places, layers, *a.shape), a.dtype)


def layer_at(g: Group, rank: Rank, chunk: Array | int, j: Array | int,
           part: Batch | None = None) -> tuple[Tree, Side]:
    """Weights of layer j of a chunk, and what it reads of a microbatch."""
    part = part or part_of(rank.batch, 0)
    weights, held = at((g.weights, g.held), jnp.maximum(chunk, 0) * g.room.size + j)
    return weights, Side(part.segments[:, :-1], g.rows, held)


def masked(tree: Tree, ok: Flag) -> Tree:
    """What was asked for, or zeros."""
    return tree if ok is True else jax.tree.map(lambda a: jnp.where(ok, a, 0), tree)


def part_of(batch: Batch, microbatch: Array | int) -> Batch:
    """One microbatch."""
    return at(batch, microbatch)


def at(tree: Tree, place: Array | int) -> Tree:
    """One of the leading dim; the first where the place is -1 and nothing will be made of it."""
    index = jnp.maximum(place, 0)
    return jax.tree.map(lambda a: lax.dynamic_index_in_dim(a, index, 0, keepdims=False), tree)


def put(a: Array, place: Array, new: Array, ok: Flag) -> Array:
    """Write one of the leading dim, or leave it."""
    if ok is not True:
        new = jnp.where(ok, new, at(a, place))
    return lax.dynamic_update_index_in_dim(a, new, jnp.maximum(place, 0), 0)
