"""What a rank of a pipeline does in one slot: F, B, W or what a cell holds of them.

Where a slot holds a forward and a backward, neither reads what the other writes, so one may run
while exchanges of the other travel. `is_open` writes the layers of such slots out, where other
slots loop over them, and overlaps the two (parallel/overlap.py).

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
from dsjax.model.loss import Batch
from dsjax.parallel.overlap import overlap
from dsjax.params import Tree
from dsjax.pipeline.buffers import (
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
from dsjax.pipeline.instructions import Instructions
from dsjax.pipeline.schedules.table import Kind
from dsjax.pipeline.stage_work import varying
from dsjax.pipeline.transfer import travel

Work = Callable[[State, Any], tuple[Any, Any, State]]
"""state, instructions of the slot -> output, input gradient, state."""


class Kept(NamedTuple):
    """What B and W read of F, taken before another F writes beside it."""

    b: dict[str, list[Array]]  # [N, ...]
    w: dict[str, list[Array]]


class Ahead(NamedTuple):
    """What F leaves beside its output, by group."""

    stored: dict[str, list[Array]]  # [N, ...]
    balance: dict[str, Array]  # [N] losses
    loads: dict[str, Array]  # [N, E]
    rounds: dict[str, Array]  # [N]


class Back(NamedTuple):
    """What B leaves beside the input's gradient."""

    grads: dict[str, Tree]  # summed
    owed: dict[str, list[Array]]  # [N, ...]
    d_ends: Any  # summed
    total: Array
    parts: Any


def branch(rank: Rank, kinds: Sequence[Kind], *, sends: bool = False) -> Work:
    """The work of a cell with operations of these kinds; all kinds, masked, where lanes are.

    `sends`, for slots in which all ranks do the same: what is made travels while the slot goes on,
    and what comes back is what neighbors sent, as `travel` gives it.
    """
    goes_ahead = Kind.FORWARD in kinds
    goes_back, is_whole = Kind.INPUT in kinds or Kind.BACKWARD in kinds, Kind.BACKWARD in kinds
    is_open = rank.is_open and goes_ahead and goes_back

    def after(value: Array, name: str) -> Any:
        return travel(rank, value, name) if sends else value

    def run(state: State, now: Instructions) -> tuple[Any, Any, State]:
        y = dx = varying(jnp.zeros(_shape(rank), rank.backend.dtype))
        kept, state = _keep(state, now, kinds)
        f_ok, b_ok = _flag(rank, now.f_place), _flag(rank, now.b_place)

        def ahead(x: Array) -> tuple[Any, Ahead]:
            y, made = _ahead(rank, now, x, is_open)
            return after(y, "y"), made

        def back(got: Array, stored: dict) -> tuple[Any, Back]:
            dx, left = _back(rank, state, now, b_ok, got, stored, is_open=is_open,
                             is_whole=is_whole and not is_open)
            dx = after(dx, "dx")
            if is_whole and is_open:  # behind what travels
                grads = _weights(rank, state.grads, now.b_chunk, now.b_microbatch, b_ok, stored,
                                 left.owed, is_open=True)
                left = left._replace(grads=grads, owed={})
            return dx, left

        made = left = None
        f_given = (_entering(rank, state, now),) if goes_ahead else ()
        b_given = (at(state.inbox_gradient, now.b_from), kept.b) if goes_back else ()
        if is_open:
            (y, made), (dx, left) = overlap(ahead, f_given, back, b_given)
        elif goes_ahead:
            y, made = ahead(*f_given)
        if goes_back and not is_open:
            dx, left = back(*b_given)
        if made is not None:
            state = _store(rank, state, now, f_ok, made)
        if left is not None:
            state = _settle(state, now, b_ok, left)
        if Kind.WEIGHT in kinds:
            owed = {g.name: at(state.owed[g.name], now.w_owed) for g in rank.groups}
            grads = _weights(rank, state.grads, now.w_chunk, now.w_microbatch,
                             _flag(rank, now.w_place), kept.w, owed, is_open=is_open)
            state = dataclasses.replace(state, grads=grads)
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


def _entering(rank: Rank, state: State, now: Instructions) -> Array:
    """What F begins with: the embedding of its tokens, or what the stage before sent."""
    part = part_of(rank.batch, now.f_microbatch)
    x = varying(transformer.embed(rank.ends, part.tokens[:, :-1], rank.backend))
    if not state.inbox_x.shape[0]:
        return x
    return jnp.where(now.f_from < 0, x, at(state.inbox_x, now.f_from))


def _ahead(rank: Rank, now: Instructions, x: Array, is_open: bool) -> tuple[Array, Ahead]:
    """F: through the layers of a stage."""
    part = part_of(rank.batch, now.f_microbatch)
    left = Ahead({}, {}, {}, {})
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

        x, (left.balance[g.name], (left.loads[g.name], left.rounds[g.name]),
            left.stored[g.name]) = _over(g.room.size, one, x, (), is_open=is_open)
    return x, left


def _store(rank: Rank, state: State, now: Instructions, ok: Flag, made: Ahead) -> State:
    """Keep the activations of an F, and count its losses and loads."""
    stored, total, balance = dict(state.stored), state.total, state.parts.balance
    loads, rounds = dict(state.loads), state.rounds
    for g in rank.groups:
        stored[g.name] = [put(a, now.f_place, new, ok)
                          for a, new in zip(stored[g.name], made.stored[g.name], strict=True)]
        more, extra = masked((made.balance[g.name].sum(), made.rounds[g.name].sum()), ok)
        total, balance, rounds = total + more, balance + more, rounds + extra
        if g.name in loads:
            first = jnp.maximum(now.f_chunk, 0) * g.room.size
            new = lax.dynamic_slice_in_dim(loads[g.name], first, g.room.size) + masked(
                made.loads[g.name], ok)
            loads[g.name] = lax.dynamic_update_slice_in_dim(loads[g.name], new, first, 0)
    parts = dataclasses.replace(state.parts, balance=balance)
    return dataclasses.replace(state, stored=stored, total=total, loads=loads, rounds=rounds,
                               parts=parts)


def _back(rank: Rank, state: State, now: Instructions, ok: Flag, got: Array, kept: dict, *,
          is_whole: bool, is_open: bool) -> tuple[Array, Back]:
    """B, or BW when `is_whole`: from the losses or what the stage after sent back through a stage.

    got [B, T, D] is that stage's gradient, or on the last stage its own output.
    """
    part = part_of(rank.batch, now.b_microbatch)
    dy, d_ends, total, parts = _losses(rank, state, now, ok, got, part)
    grads: dict[str, Tree] = dict(state.grads) if is_whole else {}
    owed: dict[str, list[Array]] = {}
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

        (dy, sums), late = _over(g.room.size, back, (dy, grads.get(g.name)), (kept[g.name],),
                                 is_open=is_open, reverse=True)
        if is_whole:
            grads[g.name] = sums
        else:
            owed[g.name] = late
    is_first = (now.b_is_first == 1) & ok
    d_embed = d_ends.embed.at[part.tokens[:, :-1]].add(
        jnp.where(is_first, dy, 0).astype(d_ends.embed.dtype))
    return dy, Back(grads, owed, dataclasses.replace(d_ends, embed=d_embed), total, parts)


def _losses(rank: Rank, state: State, now: Instructions, ok: Flag, got: Array,
            part: Batch) -> tuple[Array, Any, Array, Any]:
    """On the last stage head and losses, forward and backward: dy, summed d_ends, total, parts."""

    def last() -> Any:
        (total, parts), (d_ends, dy) = rank.tail(rank.ends, got, part)
        sums = jax.tree.map(jnp.add, state.d_ends, varying(d_ends))
        return dy, sums, *varying((total, parts))

    def other() -> Any:
        return got, state.d_ends, *varying(zeros((state.total, state.parts)))

    return lax.cond((now.b_is_last == 1) & ok, last, other)


def _settle(state: State, now: Instructions, ok: Flag, left: Back) -> State:
    """Keep what a B made."""
    owed = dict(state.owed)
    for name, late in left.owed.items():
        owed[name] = [put(a, now.b_owed, new, ok)
                      for a, new in zip(owed[name], late, strict=True)]
    total, parts = jax.tree.map(jnp.add, (state.total, state.parts), (left.total, left.parts))
    return dataclasses.replace(state, grads={**state.grads, **left.grads}, owed=owed,
                               d_ends=left.d_ends, total=total, parts=parts)


def _weights(rank: Rank, grads: dict[str, Tree], chunk: Array, microbatch: Array, ok: Flag,
             kept: dict, owed: dict, *, is_open: bool) -> dict[str, Tree]:
    """W: gradients of a stage's weights, from what F stored and B left, added to `grads`."""
    grads = dict(grads)
    part = part_of(rank.batch, microbatch)
    for g in rank.groups:

        def one(sums: Tree, layer: Any, g: Group = g) -> tuple[Tree, None]:
            j, stored, owed = layer
            weights, side = layer_at(g, rank, chunk, j, part)
            made = _either(
                rank, _here(g, chunk, j),
                lambda: varying(g.parts.weight_gradient(weights, side, stored, owed)),
                lambda: varying(zeros(weights)))
            return _add(sums, g, chunk, j, made, ok), None

        grads[g.name], _ = _over(g.room.size, one, grads[g.name], (kept[g.name], owed[g.name]),
                                 is_open=is_open)
    return grads


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
