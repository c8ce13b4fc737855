"""The work of a rank in one tick: F, B, W or what a cell holds of them.

Where a tick holds a forward and a backward, neither reads what the other writes, so one may run
while exchanges of the other travel. `is_unrolled` writes the layers of such ticks out, where other
ticks loop over them, and overlaps the two (parallel/overlap.py).

Axes: A buffers, N layers of a stage, B rows, T time, D model, E experts.
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
from dsjax.pipeline.buffers import Group, Rank, State, at, layer_at, put, zeros
from dsjax.pipeline.instructions import Instructions
from dsjax.pipeline.schedules.table import Kind
from dsjax.pipeline.stage_work import varying
from dsjax.pipeline.transfer import send

Work = Callable[[State, Instructions], tuple[Any, Any, State]]
"""state, instructions of the tick -> output, input gradient, state."""

Residuals = dict[str, list[Array]]
"""By stack, arrays [N, ...]."""


class Forward(NamedTuple):
    """Results of F beside its output, by stack."""

    residuals: Residuals
    balance: dict[str, Array]  # [N] losses
    loads: dict[str, Array]  # [N, E]
    rounds: dict[str, Array]  # [N]


class Backward(NamedTuple):
    """Results of B beside the input's gradient."""

    grads: dict[str, Tree]  # summed
    residuals: Residuals  # for W
    d_ends: Any  # summed
    total: Array
    parts: Any


class Gradient(NamedTuple):
    """Input of W: stage and microbatch, and the residuals of its F and B."""

    chunk: Array
    microbatch: Array
    of_f: Residuals
    of_b: Residuals


def branch(rank: Rank, kinds: Sequence[Kind], *, sends: bool = False) -> Work:
    """Build the work of a cell with operations of these kinds.

    `sends`, for ticks in which all ranks do the same: outputs travel while the tick goes on, and
    what comes back is what neighbors sent, as `send` gives it.
    """
    goes_ahead = Kind.FORWARD in kinds
    goes_back, is_whole = Kind.INPUT in kinds or Kind.BACKWARD in kinds, Kind.BACKWARD in kinds
    is_unrolled = rank.is_unrolled and goes_ahead and goes_back

    def after(value: Array, name: str) -> Any:
        return send(rank, value, name) if sends else value

    def run(state: State, now: Instructions) -> tuple[Any, Any, State]:
        y = dx = varying(jnp.zeros(rank.shape, rank.backend.dtype))
        of_f, of_w, state = _read_residuals(state, now, kinds)

        def ahead(x: Array) -> tuple[Any, Forward]:
            y, made = _ahead(rank, now, x, is_unrolled)
            return after(y, "y"), made

        def back(got: Array, residuals: Residuals) -> tuple[Any, Backward]:
            if not is_unrolled:
                dx, left = _back(rank, state, now, got, residuals, is_whole=is_whole)
                return after(dx, "dx"), left
            dx, left = _back(rank, state, now, got, residuals, is_unrolled=True)
            dx = after(dx, "dx")
            if is_whole:  # behind what travels
                work = Gradient(now.b_chunk, now.b_microbatch, residuals, left.residuals)
                left = left._replace(grads=_weights(rank, state.grads, work, is_unrolled=True),
                                     residuals={})
            return dx, left

        made = left = None
        f_given = (_entering(rank, state, now),) if goes_ahead else ()
        b_given = (at(state.inbox_gradient, now.b_from), of_f) if goes_back else ()
        if is_unrolled:
            (y, made), (dx, left) = overlap(ahead, f_given, back, b_given)
        elif goes_ahead:
            y, made = ahead(*f_given)
        if goes_back and not is_unrolled:
            dx, left = back(*b_given)
        if made is not None:
            state = _after_forward(rank, state, now, made)
        if left is not None:
            state = _after_backward(state, now, left)
        if Kind.WEIGHT in kinds:
            of_b = {g.name: at(state.residuals_w[g.name], now.w_from_b) for g in rank.groups}
            work = Gradient(now.w_chunk, now.w_microbatch, of_w, of_b)
            grads = _weights(rank, state.grads, work, is_unrolled=is_unrolled)
            state = dataclasses.replace(state, grads=grads)
        return y, dx, state

    return run


def _read_residuals(state: State, now: Instructions,
                    kinds: Sequence[Kind]) -> tuple[Residuals, Residuals, State]:
    """Read F's residuals for this tick's B and W; where an F writes, it writes afterwards."""
    goes_back = Kind.INPUT in kinds or Kind.BACKWARD in kinds
    for_b = at(state.residuals_b, now.b_buffer) if goes_back else {}
    for_w = at(state.residuals_b, now.w_buffer) if Kind.WEIGHT in kinds else {}
    if Kind.FORWARD in kinds and goes_back:
        (for_b, for_w), kept = lax.optimization_barrier(((for_b, for_w), state.residuals_b))
        state = dataclasses.replace(state, residuals_b=kept)
    return for_b, for_w, state


def _over(size: int, one: Callable, carry: Any, rest: tuple, *, is_unrolled: bool,
          reverse: bool = False) -> tuple[Any, Any]:
    """Go over the layers of a stage, as `lax.scan`; `is_unrolled` writes them out."""
    if not is_unrolled:
        return lax.scan(one, carry, (jnp.arange(size), *rest), reverse=reverse)
    found: list[Any] = [None] * size
    for j in reversed(range(size)) if reverse else range(size):
        carry, found[j] = one(carry, (j, *at(rest, j)))
    return carry, jax.tree.map(lambda *parts: jnp.stack(parts), *found)


def _entering(rank: Rank, state: State, now: Instructions) -> Array:
    """Input of F: the embedding of its tokens, or what the stage before sent."""
    part = at(rank.batch, now.f_microbatch)
    x = varying(transformer.embed(rank.ends, part.tokens[:, :-1], rank.backend))
    if not state.inbox_x.shape[0]:
        return x
    return jnp.where(now.f_from < 0, x, at(state.inbox_x, now.f_from))


def _ahead(rank: Rank, now: Instructions, x: Array, is_unrolled: bool) -> tuple[Array, Forward]:
    """F: through the layers of a stage."""
    part = at(rank.batch, now.f_microbatch)
    left = Forward({}, {}, {}, {})
    for g in rank.groups:

        def one(x: Array, layer: tuple, g: Group = g) -> tuple[Array, Any]:
            j = layer[0]
            params, side = layer_at(g, now.f_chunk, j, part)

            def skip() -> Any:
                shapes = jax.eval_shape(g.split.forward, params, x, side)
                (_, zero), aux, residuals = varying(zeros(shapes))
                return (x, zero), aux, residuals

            (x, balance), aux, residuals = _if_here(
                g, now.f_chunk, j, lambda: varying(g.split.forward(params, x, side)), skip)
            return x, (balance, aux, residuals)

        x, (left.balance[g.name], (left.loads[g.name], left.rounds[g.name]),
            left.residuals[g.name]) = _over(g.layout.size, one, x, (), is_unrolled=is_unrolled)
    return x, left


def _after_forward(rank: Rank, state: State, now: Instructions, made: Forward) -> State:
    """Keep the residuals of an F, and count its losses and loads."""
    kept, total, balance = dict(state.residuals_b), state.total, state.parts.balance
    loads, rounds = dict(state.loads), state.rounds
    for g in rank.groups:
        kept[g.name] = [put(a, now.f_buffer, new)
                        for a, new in zip(kept[g.name], made.residuals[g.name], strict=True)]
        more = made.balance[g.name].sum()
        total, balance = total + more, balance + more
        rounds = rounds + made.rounds[g.name].sum()
        if g.name in loads:
            first, size = jnp.maximum(now.f_chunk, 0) * g.layout.size, g.layout.size
            new = lax.dynamic_slice_in_dim(loads[g.name], first, size) + made.loads[g.name]
            loads[g.name] = lax.dynamic_update_slice_in_dim(loads[g.name], new, first, 0)
    parts = dataclasses.replace(state.parts, balance=balance)
    return dataclasses.replace(state, residuals_b=kept, total=total, loads=loads, rounds=rounds,
                               parts=parts)


def _back(rank: Rank, state: State, now: Instructions, got: Array, residuals: Residuals, *,
          is_whole: bool = False, is_unrolled: bool = False) -> tuple[Array, Backward]:
    """B, or BW when `is_whole`: from the losses or what the stage after sent back through a stage.

    got [B, T, D] is that stage's gradient, or on the last stage its own output.
    """
    part = at(rank.batch, now.b_microbatch)
    dy, d_ends, total, parts = _losses(rank, state, now, got, part)
    grads: dict[str, Tree] = dict(state.grads) if is_whole else {}
    for_w: Residuals = {}
    unit = varying(jnp.ones(()))
    for g in reversed(rank.groups):

        def back(carry: Any, layer: Any, g: Group = g) -> tuple[Any, Any]:
            (dy, sums), (j, of_f) = carry, layer
            params, side = layer_at(g, now.b_chunk, j, part)

            def run() -> Any:
                dx, of_b = varying(g.split.input_gradient(params, side, of_f, (dy, unit)))
                if not is_whole:
                    return dx, of_b
                return dx, varying(g.split.weight_gradient(params, side, of_f, of_b))

            def skip() -> Any:
                return dy, varying(zeros(jax.eval_shape(run)[1]))

            dx, made = _if_here(g, now.b_chunk, j, run, skip)
            if is_whole:
                return (dx, _add(sums, g, now.b_chunk, j, made)), None
            return (dx, sums), made

        (dy, sums), made = _over(g.layout.size, back, (dy, grads.get(g.name)),
                                 (residuals[g.name],), is_unrolled=is_unrolled, reverse=True)
        if is_whole:
            grads[g.name] = sums
        else:
            for_w[g.name] = made
    d_embed = d_ends.embed.at[part.tokens[:, :-1]].add(
        jnp.where(now.b_is_first == 1, dy, 0).astype(d_ends.embed.dtype))
    return dy, Backward(grads, for_w, dataclasses.replace(d_ends, embed=d_embed), total, parts)


def _losses(rank: Rank, state: State, now: Instructions, got: Array,
            part: Batch) -> tuple[Array, Any, Array, Any]:
    """On the last stage head and losses, forward and backward: dy, summed d_ends, total, parts."""

    def last() -> Any:
        (total, parts), (d_ends, dy) = rank.tail(rank.ends, got, part)
        sums = jax.tree.map(jnp.add, state.d_ends, varying(d_ends))
        return dy, sums, *varying((total, parts))

    def other() -> Any:
        return got, state.d_ends, *varying(zeros((state.total, state.parts)))

    return lax.cond(now.b_is_last == 1, last, other)


def _after_backward(state: State, now: Instructions, left: Backward) -> State:
    """Keep what a B made."""
    kept = dict(state.residuals_w)
    for name, made in left.residuals.items():
        kept[name] = [put(a, now.b_for_w, new) for a, new in zip(kept[name], made, strict=True)]
    total, parts = jax.tree.map(jnp.add, (state.total, state.parts), (left.total, left.parts))
    return dataclasses.replace(state, grads={**state.grads, **left.grads}, residuals_w=kept,
                               d_ends=left.d_ends, total=total, parts=parts)


def _weights(rank: Rank, grads: dict[str, Tree], work: Gradient, *,
             is_unrolled: bool) -> dict[str, Tree]:
    """W: gradients of a stage's parameters, added to `grads`."""
    grads = dict(grads)
    part = at(rank.batch, work.microbatch)
    for g in rank.groups:

        def one(sums: Tree, layer: Any, g: Group = g) -> tuple[Tree, None]:
            j, of_f, of_b = layer
            params, side = layer_at(g, work.chunk, j, part)
            made = _if_here(
                g, work.chunk, j,
                lambda: varying(g.split.weight_gradient(params, side, of_f, of_b)),
                lambda: varying(zeros(params)))
            return _add(sums, g, work.chunk, j, made), None

        grads[g.name], _ = _over(
            g.layout.size, one, grads[g.name], (work.of_f[g.name], work.of_b[g.name]),
            is_unrolled=is_unrolled)
    return grads


def _if_here(g: Group, chunk: Array, j: Array | int, run: Callable[[], Any],
             skip: Callable[[], Any]) -> Any:
    """Run where a chunk has a layer in place j, skip where the place is empty."""
    if g.layout.is_full or (isinstance(j, int) and j < g.layout.count.min()):
        return run()
    return lax.cond(j < at(g.count, chunk), run, skip)


def _add(sums: Tree, g: Group, chunk: Array, j: Array | int, made: Tree) -> Tree:
    """Add a layer's gradient to its sum."""
    index = jnp.maximum(chunk, 0) * g.layout.size + j
    return jax.tree.map(lambda a, new: put(a, index, at(a, index) + new), sums, made)
