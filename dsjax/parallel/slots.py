"""What a rank does in one slot of a pipeline, and the memory it does it in.

`State` is everything that lives from slot to slot: one fixed memory, whose places the program gave
out. A branch runs the operations of one kind of cell, F before B before W.

Axes: A places, N layers of a stage, B rows, T time, D model, E experts.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array, lax

from dsjax.layers.backend import Backend
from dsjax.model import transformer
from dsjax.model.loss import Batch, LossParts
from dsjax.parallel.mesh import PIPE
from dsjax.parallel.program import Instructions, Program
from dsjax.parallel.schedules.table import Kind
from dsjax.parallel.split import Split, split
from dsjax.parallel.stages import Layer, Room, Side, varying
from dsjax.params import Tree

Flag = Array | bool
Work = Callable[["State", Any], tuple[Array, Array, "State"]]
"""state, instructions of the slot -> output, input gradient, state."""


@dataclasses.dataclass(frozen=True)
class Group:
    """The layers of one kind on this rank: weights, and the parts of their gradient."""

    name: str
    room: Room
    weights: Tree  # [chunks * N, ...]
    held: Tree
    count: Array  # [chunks]
    rows: Array  # [] of the whole step
    parts: Split


@dataclasses.dataclass(frozen=True)
class Rank:
    """What a rank reads in every slot."""

    program: Program
    groups: tuple[Group, ...]
    ends: Any
    tail: Callable
    batch: Batch  # [M, B, T+1]
    backend: Backend

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
    loads: Array  # [chunks * N, E]
    rounds: Array
    executed: Array  # [branches]


def group(name: str, room: Room, weights: Tree, held: Tree, count: Array, rows: Array,
          segments: Array, layer: Layer, x: Array) -> Group:
    """Cut the gradient of a rank's layers; segments [B, T] and x [B, T, D] give shapes."""
    first = _at((weights, held), 0)
    side = Side(segments, rows, first[1])
    dy = varying((x, jnp.zeros(())))
    parts = split(lambda p, x, side: varying(layer(p, x, side)), first[0], x, side, dy)
    return Group(name, room, weights, held, count, rows, parts)


def start(rank: Rank, x: Array, experts: int) -> State:
    """Empty memory. x [B, T, D] gives its shape."""
    program = rank.program
    stored, owed = {}, {}
    for g in rank.groups:
        kept, late = jax.eval_shape(functools.partial(_once, g, x, rank))
        stored[g.name] = [_room(a, program.activations, g.room.size) for a in kept]
        owed[g.name] = [_room(a, program.owed, g.room.size) for a in late]
    boxes = [jnp.zeros((size, *x.shape), x.dtype) for size in program.inbox]
    grads = {g.name: _zeros(g.weights) for g in rank.groups}
    places = sum(g.room.layer.shape[1] for g in rank.groups if g.name == "moe")
    part = jax.tree.map(lambda a: a[0], rank.batch)
    (total, parts), (d_ends, _) = jax.eval_shape(rank.tail, rank.ends, x, part)
    del total
    return State(
        stored=stored, owed=owed, inbox_x=boxes[0], inbox_gradient=boxes[1], grads=grads,
        d_ends=_zeros(d_ends), total=jnp.zeros(()), parts=_zeros(parts),
        loads=jnp.zeros((places, experts)), rounds=jnp.zeros(()),
        executed=jnp.zeros(len(program.branches), jnp.int32))


def _once(g: Group, x: Array, rank: Rank) -> tuple[list[Array], list[Array]]:
    """What one layer stores and owes."""
    (weights, side), one = _layer(g, rank, 0, 0), varying(jnp.ones(()))
    _, _, stored = g.parts.forward(weights, x, side)
    return stored, g.parts.input_gradient(weights, side, stored, (x, one))[1]


def _zeros(tree: Tree) -> Tree:
    return jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), tree)


def _room(a: Any, places: int, layers: int) -> Array:
    return jnp.zeros((places, layers, *a.shape), a.dtype)


def branch(rank: Rank, kinds: Sequence[Kind]) -> Work:
    """The work of a cell with operations of these kinds; all kinds, masked, where lanes are."""

    def run(state: State, now: Instructions) -> tuple[Array, Array, State]:
        y = dx = varying(jnp.zeros(_shape(rank), rank.backend.dtype))
        if Kind.FORWARD in kinds:
            y, state = _forward(rank, state, now, _flag(rank, now.f_place))
        if Kind.INPUT in kinds or Kind.BACKWARD in kinds:
            is_whole = Kind.BACKWARD in kinds
            dx, state = _backward(rank, state, now, _flag(rank, now.b_place), is_whole)
        if Kind.WEIGHT in kinds:
            state = _weights(rank, state, now, _flag(rank, now.w_place))
        return y, dx, state

    return run


def _shape(rank: Rank) -> tuple[int, int, int]:
    _, rows, length = rank.batch.tokens.shape
    return rows, length - 1, rank.ends.embed.shape[1]


def _flag(rank: Rank, place: Array) -> Flag:
    """Whether an operation is asked for: always, in a branch of its own."""
    return place >= 0 if rank.is_masked else True


def _forward(rank: Rank, state: State, now: Instructions, ok: Flag) -> tuple[Array, State]:
    """F: from the embedding or the inbox through a stage; its activations are stored."""
    part = _part(rank.batch, now.f_microbatch)
    x = varying(transformer.embed(rank.ends, part.tokens[:, :-1], rank.backend))
    if state.inbox_x.shape[0]:
        x = jnp.where(now.f_from < 0, x, _at(state.inbox_x, now.f_from))
    stored, total, balance = dict(state.stored), state.total, state.parts.balance
    loads, rounds = state.loads, state.rounds
    for g in rank.groups:

        def one(x: Array, j: Array, g: Group = g) -> tuple[Array, Any]:
            (weights, side), is_here = _layer(g, rank, now.f_chunk, j, part), _here(
                g, now.f_chunk, j)

            def skip() -> Any:
                shapes = jax.eval_shape(g.parts.forward, weights, x, side)
                (_, zero), aux, kept = varying(_zeros(shapes))
                return (x, zero), aux, kept

            (x, balance), aux, kept = _either(
                rank, is_here, lambda: varying(g.parts.forward(weights, x, side)), skip)
            return x, (balance, aux, kept)

        x, (more, (chosen, extra), kept) = lax.scan(one, x, jnp.arange(g.room.size))
        stored[g.name] = [_put(a, now.f_place, new, ok)
                          for a, new in zip(state.stored[g.name], kept, strict=True)]
        more, extra = _masked((more.sum(), extra.sum()), ok)
        total, balance, rounds = total + more, balance + more, rounds + extra
        if g.name == "moe":
            first = jnp.maximum(now.f_chunk, 0) * g.room.size
            old = lax.dynamic_slice_in_dim(loads, first, g.room.size)
            loads = lax.dynamic_update_slice_in_dim(loads, old + _masked(chosen, ok), first, 0)
    parts = dataclasses.replace(state.parts, balance=balance)
    return x, dataclasses.replace(state, stored=stored, total=total, loads=loads, rounds=rounds,
                                  parts=parts)


def _backward(rank: Rank, state: State, now: Instructions, ok: Flag,
              is_whole: bool) -> tuple[Array, State]:
    """B, or BW when `is_whole`: from the losses or the inbox back through a stage."""
    dy, state = _incoming(rank, state, now, ok)
    grads, owed = dict(state.grads), dict(state.owed)
    part = _part(rank.batch, now.b_microbatch)
    one = varying(jnp.ones(()))
    for g in reversed(rank.groups):
        stored = _at(state.stored[g.name], now.b_place)

        def back(carry: Any, layer: Any, g: Group = g) -> tuple[Any, Any]:
            (dy, sums), (j, stored) = carry, layer
            weights, side = _layer(g, rank, now.b_chunk, j, part)

            def run() -> Any:
                dx, late = varying(g.parts.input_gradient(weights, side, stored, (dy, one)))
                if not is_whole:
                    return dx, late
                return dx, varying(g.parts.weight_gradient(weights, side, stored, late))

            def skip() -> Any:
                return dy, varying(_zeros(jax.eval_shape(run)[1]))

            dx, made = _either(rank, _here(g, now.b_chunk, j), run, skip)
            if is_whole:
                return (dx, _add(sums, g, now.b_chunk, j, made, ok)), None
            return (dx, sums), made

        sums = grads[g.name] if is_whole else None
        (dy, sums), late = lax.scan(back, (dy, sums), (jnp.arange(g.room.size), stored),
                                    reverse=True)
        if is_whole:
            grads[g.name] = sums
        else:
            owed[g.name] = [_put(a, now.b_owed, new, ok)
                            for a, new in zip(state.owed[g.name], late, strict=True)]
    is_first = (now.b_is_first == 1) & ok
    d_embed = state.d_ends.embed.at[part.tokens[:, :-1]].add(
        jnp.where(is_first, dy, 0).astype(state.d_ends.embed.dtype))
    d_ends = dataclasses.replace(state.d_ends, embed=d_embed)
    return dy, dataclasses.replace(state, grads=grads, owed=owed, d_ends=d_ends)


def _incoming(rank: Rank, state: State, now: Instructions, ok: Flag) -> tuple[Array, State]:
    """The gradient of a stage's output: from the next stage, or from the losses."""
    got = _at(state.inbox_gradient, now.b_from)
    part = _part(rank.batch, now.b_microbatch)
    sums = (state.d_ends, state.total, state.parts)

    def last() -> Any:
        (total, parts), (d_ends, dy) = rank.tail(rank.ends, got, part)
        return dy, jax.tree.map(jnp.add, sums, varying((d_ends, total, parts)))

    is_last = (now.b_is_last == 1) & ok
    dy, (d_ends, total, parts) = lax.cond(is_last, last, lambda: (got, sums))
    return dy, dataclasses.replace(state, d_ends=d_ends, total=total, parts=parts)


def _weights(rank: Rank, state: State, now: Instructions, ok: Flag) -> State:
    """W: gradients of a stage's weights, from what F stored and B left."""
    grads = dict(state.grads)
    part = _part(rank.batch, now.w_microbatch)
    for g in rank.groups:
        stored = _at(state.stored[g.name], now.w_place)
        owed = _at(state.owed[g.name], now.w_owed)

        def one(sums: Tree, layer: Any, g: Group = g) -> tuple[Tree, None]:
            j, stored, owed = layer
            weights, side = _layer(g, rank, now.w_chunk, j, part)
            made = _either(
                rank, _here(g, now.w_chunk, j),
                lambda: varying(g.parts.weight_gradient(weights, side, stored, owed)),
                lambda: varying(_zeros(weights)))
            return _add(sums, g, now.w_chunk, j, made, ok), None

        grads[g.name], _ = lax.scan(one, grads[g.name],
                                    (jnp.arange(g.room.size), stored, owed))
    return dataclasses.replace(state, grads=grads)


def exchange(rank: Rank, state: State, now: Instructions, y: Array, dx: Array) -> State:
    """Send what a slot made to the neighbors that need it, and keep what they sent."""
    ranks = len(rank.program.stage_of)
    up = [(r, (r + 1) % ranks) for r in range(ranks)]
    down = [(there, here) for here, there in up]
    x_box, gradient_box = state.inbox_x, state.inbox_gradient
    table = rank.program.instructions

    def receive(box: Array, value: Array, name: str) -> Array:
        for way, pairs in (("here", None), ("up", up), ("down", down)):
            field = f"{name}_{way}"
            if (getattr(table, field) >= 0).any():
                sent = value if pairs is None else lax.ppermute(value, PIPE, pairs)
                box = _put(box, getattr(now, field), sent, getattr(now, field) >= 0)
        return box

    x_box = receive(x_box, y, "y")
    gradient_box = receive(gradient_box, dx, "dx")
    gradient_box = _put(gradient_box, now.y_last, y, now.y_last >= 0)
    return dataclasses.replace(state, inbox_x=x_box, inbox_gradient=gradient_box)


def _layer(g: Group, rank: Rank, chunk: Array | int, j: Array | int,
           part: Batch | None = None) -> tuple[Tree, Side]:
    """Weights of layer j of a chunk, and what it reads of a microbatch."""
    part = part or _part(rank.batch, 0)
    weights, held = _at((g.weights, g.held), jnp.maximum(chunk, 0) * g.room.size + j)
    return weights, Side(part.segments[:, :-1], g.rows, held)


def _here(g: Group, chunk: Array, j: Array) -> Flag:
    """Whether a chunk has a layer in place j."""
    return True if g.room.is_full else j < _at(g.count, chunk)


def _either(rank: Rank, ok: Flag, do: Callable[[], Any], skip: Callable[[], Any]) -> Any:
    """Do or skip; where all is masked, do and forget."""
    if ok is True:
        return do()
    if rank.is_masked:
        return jax.tree.map(lambda a, b: jnp.where(ok, a, b), do(), skip())
    return lax.cond(ok, do, skip)


def _add(sums: Tree, g: Group, chunk: Array, j: Array, made: Tree, ok: Flag) -> Tree:
    """Add a layer's gradient to its sum."""
    index = jnp.maximum(chunk, 0) * g.room.size + j
    made = _masked(made, ok)
    return jax.tree.map(
        lambda a, new: lax.dynamic_update_index_in_dim(a, _at(a, index) + new, index, 0),
        sums, made)


def _masked(tree: Tree, ok: Flag) -> Tree:
    return tree if ok is True else jax.tree.map(lambda a: jnp.where(ok, a, 0), tree)


def _part(batch: Batch, microbatch: Array | int) -> Batch:
    return _at(batch, microbatch)


def _at(tree: Tree, place: Array | int) -> Tree:
    """One of the leading dim; the first where the place is -1 and nothing will be made of it."""
    index = jnp.maximum(place, 0)
    return jax.tree.map(lambda a: lax.dynamic_index_in_dim(a, index, 0, keepdims=False), tree)


def _put(a: Array, place: Array, new: Array, ok: Flag) -> Array:
    """Write one of the leading dim, or leave it."""
    if ok is not True:
        new = jnp.where(ok, new, _at(a, place))
    return lax.dynamic_update_index_in_dim(a, new, jnp.maximum(place, 0), 0)
