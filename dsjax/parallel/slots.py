"""What a rank of a pipeline does in one slot: F, B, W or what a cell holds of them, and exchange.

Where a slot holds a forward and a backward, neither reads what the other writes, so a compiler may
run one while it waits for the exchanges of the other. For that it must see both at once: `is_open`
writes the layers of such slots out, one after another, where other slots loop over them.

Axes: A places, N layers of a stage, B rows, T time, D model, E experts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from dsjax.model import transformer
from dsjax.parallel.memory import (
    Flag,
    Group,
    Rank,
    State,
    at,
    layer_at,
    masked,
    part_of,
    put,
    zeros,
)
from dsjax.parallel.mesh import PIPE
from dsjax.parallel.program import Instructions
from dsjax.parallel.schedules.table import Kind
from dsjax.parallel.stages import varying
from dsjax.params import Tree

Work = Callable[[State, Any], tuple[Array, Array, State]]
"""state, instructions of the slot -> output, input gradient, state."""


class Kept(NamedTuple):
    """What B and W read of F, taken before another F writes beside it."""

    b: dict[str, list[Array]]  # [N, ...]
    w: dict[str, list[Array]]


def branch(rank: Rank, kinds: Sequence[Kind]) -> Work:
    """The work of a cell with operations of these kinds; all kinds, masked, where lanes are."""
    goes_back = Kind.INPUT in kinds or Kind.BACKWARD in kinds
    is_open = rank.is_open and Kind.FORWARD in kinds and goes_back

    def run(state: State, now: Instructions) -> tuple[Array, Array, State]:
        y = dx = varying(jnp.zeros(_shape(rank), rank.backend.dtype))
        kept, state = _keep(state, now, kinds)
        if Kind.FORWARD in kinds:
            y, state = _forward(rank, state, now, _flag(rank, now.f_place), is_open)
        if goes_back:
            dx, state = _backward(rank, state, now, _flag(rank, now.b_place), kept.b,
                                  is_whole=Kind.BACKWARD in kinds, is_open=is_open)
        if Kind.WEIGHT in kinds:
            state = _weights(rank, state, now, _flag(rank, now.w_place), kept.w, is_open)
        return y, dx, state

    return run


def _shape(rank: Rank) -> tuple[int, int, int]:
    _, rows, length = rank.batch.tokens.shape
    return rows, length - 1, rank.ends.embed.shape[1]


def _flag(rank: Rank, place: Array) -> Flag:
    """Whether an operation is asked for: always, in a branch of its own."""
    return place >= 0 if rank.is_masked else True


def _keep(state: State, now: Instructions, kinds: Sequence[Kind]) -> tuple[Kept, State]:
    """Read what F stored for this slot's B and W; where an F writes, only afterwards."""
    goes_back = Kind.INPUT in kinds or Kind.BACKWARD in kinds
    kept = Kept(at(state.stored, now.b_place) if goes_back else {},
                at(state.stored, now.w_place) if Kind.WEIGHT in kinds else {})
    if Kind.FORWARD in kinds and goes_back:
        kept, stored = lax.optimization_barrier((kept, state.stored))
        state = dataclasses.replace(state, stored=stored)
    return kept, state


def _over(size: int, one: Callable, carry: Any, rest: tuple, *, is_open: bool,
          reverse: bool = False) -> tuple[Any, Any]:
    """Go over the layers of a stage, as `lax.scan`; `is_open` writes them out."""
    if not is_open:
        return lax.scan(one, carry, (jnp.arange(size), *rest), reverse=reverse)
    found: list[Any] = [None] * size
    for j in reversed(range(size)) if reverse else range(size):
        carry, found[j] = one(carry, (j, *at(rest, j)))
    return carry, jax.tree.map(lambda *parts: jnp.stack(parts), *found)


def _forward(rank: Rank, state: State, now: Instructions, ok: Flag,
             is_open: bool) -> tuple[Array, State]:
    """F: from the embedding or the inbox through a stage; its activations are stored."""
    part = part_of(rank.batch, now.f_microbatch)
    x = varying(transformer.embed(rank.ends, part.tokens[:, :-1], rank.backend))
    if state.inbox_x.shape[0]:
        x = jnp.where(now.f_from < 0, x, at(state.inbox_x, now.f_from))
    stored, total, balance = dict(state.stored), state.total, state.parts.balance
    loads, rounds = state.loads, state.rounds
    for g in rank.groups:

        def one(x: Array, layer: tuple, g: Group = g) -> tuple[Array, Any]:
            j = layer[0]
            weights, side = layer_at(g, rank, now.f_chunk, j, part)

            def skip() -> Any:
                shapes = jax.eval_shape(g.parts.forward, weights, x, side)
                (_, zero), aux, kept = varying(zeros(shapes))
                return (x, zero), aux, kept

            (x, balance), aux, kept = _either(
                rank, _here(g, now.f_chunk, j),
                lambda: varying(g.parts.forward(weights, x, side)), skip)
            return x, (balance, aux, kept)

        x, (more, (chosen, extra), kept) = _over(g.room.size, one, x, (), is_open=is_open)
        stored[g.name] = [put(a, now.f_place, new, ok)
                          for a, new in zip(state.stored[g.name], kept, strict=True)]
        more, extra = masked((more.sum(), extra.sum()), ok)
        total, balance, rounds = total + more, balance + more, rounds + extra
        if g.name == "moe":
            first = jnp.maximum(now.f_chunk, 0) * g.room.size
            old = lax.dynamic_slice_in_dim(loads, first, g.room.size)
            loads = lax.dynamic_update_slice_in_dim(loads, old + masked(chosen, ok), first, 0)
    parts = dataclasses.replace(state.parts, balance=balance)
    return x, dataclasses.replace(state, stored=stored, total=total, loads=loads, rounds=rounds,
                                  parts=parts)


def _backward(rank: Rank, state: State, now: Instructions, ok: Flag, kept: dict, *,
              is_whole: bool, is_open: bool) -> tuple[Array, State]:
    """B, or BW when `is_whole`: from the losses or the inbox back through a stage."""
    dy, state = _incoming(rank, state, now, ok)
    grads, owed = dict(state.grads), dict(state.owed)
    part = part_of(rank.batch, now.b_microbatch)
    unit = varying(jnp.ones(()))
    for g in reversed(rank.groups):

        def back(carry: Any, layer: Any, g: Group = g) -> tuple[Any, Any]:
            (dy, sums), (j, stored) = carry, layer
            weights, side = layer_at(g, rank, now.b_chunk, j, part)

            def run() -> Any:
                dx, late = varying(g.parts.input_gradient(weights, side, stored, (dy, unit)))
                if not is_whole:
                    return dx, late
                return dx, varying(g.parts.weight_gradient(weights, side, stored, late))

            def skip() -> Any:
                return dy, varying(zeros(jax.eval_shape(run)[1]))

            dx, made = _either(rank, _here(g, now.b_chunk, j), run, skip)
            if is_whole:
                return (dx, _add(sums, g, now.b_chunk, j, made, ok)), None
            return (dx, sums), made

        sums = grads[g.name] if is_whole else None
        (dy, sums), late = _over(g.room.size, back, (dy, sums), (kept[g.name],),
                                 is_open=is_open, reverse=True)
        if is_whole:
            grads[g.name] = sums
        else:
            owed[g.name] = [put(a, now.b_owed, new, ok)
                            for a, new in zip(state.owed[g.name], late, strict=True)]
    is_first = (now.b_is_first == 1) & ok
    d_embed = state.d_ends.embed.at[part.tokens[:, :-1]].add(
        jnp.where(is_first, dy, 0).astype(state.d_ends.embed.dtype))
    d_ends = dataclasses.replace(state.d_ends, embed=d_embed)
    return dy, dataclasses.replace(state, grads=grads, owed=owed, d_ends=d_ends)


def _incoming(rank: Rank, state: State, now: Instructions, ok: Flag) -> tuple[Array, State]:
    """The gradient of a stage's output: from the next stage, or from the losses."""
    got = at(state.inbox_gradient, now.b_from)
    part = part_of(rank.batch, now.b_microbatch)

    def last() -> Any:
        (total, parts), (d_ends, dy) = rank.tail(rank.ends, got, part)
        sums = jax.tree.map(jnp.add, state.d_ends, varying(d_ends))
        return dy, sums, *varying((total, parts))

    def other() -> Any:
        return got, state.d_ends, *varying(zeros((state.total, state.parts)))

    is_last = (now.b_is_last == 1) & ok
    dy, d_ends, *more = lax.cond(is_last, last, other)
    # Added out here, because a forward of the same slot adds to these, too.
    total, parts = jax.tree.map(jnp.add, (state.total, state.parts), tuple(more))
    return dy, dataclasses.replace(state, d_ends=d_ends, total=total, parts=parts)


def _weights(rank: Rank, state: State, now: Instructions, ok: Flag, kept: dict,
             is_open: bool) -> State:
    """W: gradients of a stage's weights, from what F stored and B left."""
    grads = dict(state.grads)
    part = part_of(rank.batch, now.w_microbatch)
    for g in rank.groups:
        owed = at(state.owed[g.name], now.w_owed)

        def one(sums: Tree, layer: Any, g: Group = g) -> tuple[Tree, None]:
            j, stored, owed = layer
            weights, side = layer_at(g, rank, now.w_chunk, j, part)
            made = _either(
                rank, _here(g, now.w_chunk, j),
                lambda: varying(g.parts.weight_gradient(weights, side, stored, owed)),
                lambda: varying(zeros(weights)))
            return _add(sums, g, now.w_chunk, j, made, ok), None

        grads[g.name], _ = _over(g.room.size, one, grads[g.name], (kept[g.name], owed),
                                 is_open=is_open)
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
                box = put(box, getattr(now, field), sent, getattr(now, field) >= 0)
        return box

    x_box = receive(x_box, y, "y")
    gradient_box = receive(gradient_box, dx, "dx")
    gradient_box = put(gradient_box, now.y_last, y, now.y_last >= 0)
    return dataclasses.replace(state, inbox_x=x_box, inbox_gradient=gradient_box)


def _here(g: Group, chunk: Array, j: Array | int) -> Flag:
    """Whether a chunk has a layer in place j."""
    if g.room.is_full or (isinstance(j, int) and j < g.room.count.min()):
        return True
    return j < at(g.count, chunk)


def _either(rank: Rank, ok: Flag, do: Callable[[], Any], skip: Callable[[], Any]) -> Any:
    """Do or skip; where all is masked, do and forget."""
    if ok is True:
        return do()
    if rank.is_masked:
        return jax.tree.map(lambda a, b: jnp.where(ok, a, b), do(), skip())
    return lax.cond(ok, do, skip)


def _add(sums: Tree, g: Group, chunk: Array, j: Array | int, made: Tree, ok: Flag) -> Tree:
    """Add a layer's gradient to its sum."""
    index = jnp.maximum(chunk, 0) * g.room.size + j
    made = masked(made, ok)
    return jax.tree.map(
        lambda a, new: lax.dynamic_update_index_in_dim(a, at(a, index) + new, index, 0),
        sums, made)
