"""The routed experts' SwiGLU on one device, no token dropped (V3 report eq. 12).

`experts_plain` says what is computed. `experts_batched` is its fast twin: the first C rows of every
expert go through one batched product, C a little over the mean load; what overflows goes through a
loop over the tiles in use, usually none. The gradient is written by hand, so that gathers stay
gathers in the backward pass and a weight's gradient is one batched product.

The routing weight multiplies the hidden activation, as in the official training kernels
(TileKernels, swiglu): then combining is a plain sum and the weight's own gradient is a row sum.

Axes: T tokens, K experts per token, E experts, C rows an expert, D model, F expert hidden.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from dsjax.numerics.precision import Matrix, Operand, Precision, name, weight_of
from dsjax.ops import buckets, swiglu

TILE = 64  # rows of one overflow tile
HEADROOM = 1.125  # C over the mean load


class Plan(NamedTuple):
    """Where each assignment (token, choice) sits; T*K marks an empty row.

    The batched part has rows [E * C]; overflow tiles of TILE rows each belong to one expert.
    """

    source: Array  # [E * C] assignment in each row
    slot: Array  # [T, K] row of each assignment, E * C when it overflowed
    tile_source: Array  # [tiles, TILE] assignment in each overflow row
    tile_expert: Array  # [tiles]
    tiles_used: Array  # []


def experts_plain(x: Array, experts: Array, weights: Array, w_gate_up: Array,
                  w_down: Array) -> Array:
    """The clear twin: every expert on every token, kept where it was chosen.

    x [T, D], experts and weights [T, K], w_gate_up [E, D, 2, F], w_down [E, F, D]. Returns [T, D].
    """
    chosen = jax.nn.one_hot(experts, w_down.shape[0], dtype=x.dtype)
    by_expert = jnp.einsum("tk,tke->te", weights.astype(x.dtype), chosen)
    gate_up = jnp.einsum("td,edgf->tegf", x, w_gate_up)
    hidden = jax.nn.silu(gate_up[:, :, 0]) * gate_up[:, :, 1]
    return jnp.einsum("te,tef,efd->td", by_expert, hidden, w_down)


def experts_batched(x: Array, experts: Array, weights: Array, w_gate_up: Matrix,
                    w_down: Matrix, *, precision: Precision,
                    assignments: int | None = None) -> Array:
    """The chosen experts of every token, weighted and summed; shapes as `experts_plain`.

    An expert out of range is not here: its assignment takes no row and adds nothing. `assignments`
    is how many to expect here; None is all of T*K.
    """
    gate_up, held_gate_up = weight_of(w_gate_up, precision, 1, 1, parts=2)
    down, held_down = weight_of(w_down, precision, 1, 1)
    capacity = _capacity(assignments or experts.size, down.shape[0])
    plan = make_plan(experts, down.shape[0], capacity)
    return _experts(precision, x, weights, gate_up, down, held_gate_up, held_down, plan)


def _capacity(assignments: int, experts: int) -> int:
    """Rows of an expert in the batched part: the mean load with headroom, in eights."""
    return min(assignments, math.ceil(assignments / experts * HEADROOM / 8) * 8)


def make_plan(experts: Array, count: int, capacity: int) -> Plan:
    """Give each assignment a row, in order within its expert. experts [T, K] int32.

    Those outside [0, count) get rows beyond the last.
    """
    total = experts.size
    flat = lax.optimization_barrier(experts.reshape(-1))  # see ops/buckets.py
    is_here = (flat >= 0) & (flat < count)
    expert = jnp.where(is_here, flat, 0)
    loads, position = buckets.sizes(flat, count), buckets.places(flat, count)
    at = jnp.arange(total, dtype=jnp.int32)
    tiles = -(-jnp.maximum(loads - capacity, 0) // TILE)
    last_tile = jnp.cumsum(tiles)
    max_tiles = (total - 1) // TILE + count
    rows = count * capacity
    overflow_row = rows + (last_tile - tiles)[expert] * TILE + position - capacity
    row = jnp.where(position < capacity, expert * capacity + position, overflow_row)
    slot = jnp.where(is_here, row, rows + max_tiles * TILE + at)
    source = jnp.full(rows + max_tiles * TILE, total, jnp.int32).at[slot].set(
        at, unique_indices=True)
    tile_expert = jnp.searchsorted(
        last_tile, jnp.arange(max_tiles, dtype=jnp.int32), side="right").astype(jnp.int32)
    return Plan(
        source=source[:rows],
        slot=jnp.minimum(slot, rows).reshape(experts.shape),
        tile_source=source[rows:].reshape(max_tiles, TILE),
        tile_expert=jnp.minimum(tile_expert, count - 1),
        tiles_used=last_tile[-1],
    )


def _rows(x: Operand, index: Array, weights: Array) -> tuple[Operand, Array]:
    """Tokens and routing weights of the assignments `index`, zero where a row is empty.

    Tokens are held before they are dispatched: in FP8 bytes move (V3 report sec. 3.3.3).
    """
    token = index // weights.shape[1]

    def gather(a: Array) -> Array:
        if a.dtype.itemsize > 1:
            return a.at[token].get(mode="fill", fill_value=0)
        rows = lax.bitcast_convert_type(a, jnp.uint8).at[token].get(mode="fill", fill_value=0)
        return lax.bitcast_convert_type(rows, a.dtype)

    w_rows = weights.reshape(-1).at[index].get(mode="fill", fill_value=0)
    return jax.tree.map(gather, x), w_rows


def _combine(y: Array, slot: Array) -> Array:
    """Sum each token's K rows: y [rows, D], slot [T, K] (out of range adds nothing) -> [T, D]."""
    rows = y.at[slot.reshape(-1)].get(mode="fill", fill_value=0)
    return rows.reshape(*slot.shape, -1).sum(axis=1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _experts(precision: Precision, x: Array, weights: Array, gate_up: Array, down: Array,
             held_gate_up: Operand, held_down: Operand, plan: Plan) -> Array:
    return _forward(precision, x, weights, gate_up, down, held_gate_up, held_down, plan)[0]


def _forward(precision, x, weights, gate_up, down, held_gate_up, held_down, plan):
    count = down.shape[0]
    kept, once = name(precision.quantize_input(x), "expert_input"), precision.quantize_for_fprop(x)
    x_rows, w_rows = _rows(once, plan.source, weights)
    hidden_in = precision.fprop(_by_expert(x_rows, count), held_gate_up).astype(x.dtype)
    hidden = swiglu.hidden(hidden_in) * w_rows.reshape(count, -1, 1)
    y_rows = precision.fprop(precision.quantize_for_fprop(hidden), held_down).astype(x.dtype)
    y = _combine(y_rows.reshape(-1, x.shape[1]), plan.slot)

    def add_tile(i: Array, y: Array) -> Array:
        index, e = plan.tile_source[i], plan.tile_expert[i]
        x_tile, w_tile = _rows(once, index, weights)
        gate_up_tile = precision.fprop(x_tile, _expert(held_gate_up, e))
        z = swiglu.hidden(gate_up_tile.astype(x.dtype)) * w_tile[:, None]
        y_tile = precision.fprop(precision.quantize_for_fprop(z), _expert(held_down, e))
        return y.at[index // weights.shape[1]].add(y_tile.astype(y.dtype), mode="drop")

    y = lax.fori_loop(0, plan.tiles_used, add_tile, y)
    kept_hidden = swiglu.save(hidden_in, precision)
    return y, (weights, held_gate_up, held_down, plan, kept, kept_hidden)


def _by_expert(held: Operand, count: int) -> Operand:
    """Rows [E * C, ...] of a held input as [E, C, ...]."""
    return jax.tree.map(lambda a: a.reshape(count, -1, *a.shape[1:]), held)


def _expert(held: Operand, e: Array) -> Operand:
    """One expert's held weight."""
    return jax.tree.map(lambda a: lax.dynamic_index_in_dim(a, e, 0, keepdims=False), held)


def _backward(precision, saved, dy):
    weights, held_gate_up, held_down, plan, kept, kept_hidden = saved
    hidden_in = precision.restore(kept_hidden).astype(dy.dtype)
    x = precision.restore(kept)
    count, per_token = hidden_in.shape[0], weights.shape[1]
    dy_rows, w_rows = _rows(dy, plan.source, weights)
    w_rows = w_rows.reshape(count, -1, 1)
    grad = precision.quantize_grad(dy_rows.reshape(count, -1, dy.shape[1]))
    d_weighted = precision.dgrad(grad, held_down).astype(dy.dtype)
    hidden = swiglu.hidden(hidden_in)
    d_weight_rows = (d_weighted * hidden).sum(-1)
    d_down = precision.wgrad(precision.quantize_for_wgrad(hidden * w_rows), grad)
    d_hidden_in = precision.quantize_grad(swiglu.gradient(hidden_in, d_weighted * w_rows))
    x_rows = _by_expert(_rows(x, plan.source, weights)[0], count)
    d_gate_up = precision.wgrad(precision.quantize_for_wgrad(x_rows), d_hidden_in)
    dx_rows = precision.dgrad(d_hidden_in, held_gate_up).astype(dy.dtype)
    dx = _combine(dx_rows.reshape(-1, dy.shape[1]), plan.slot)
    d_weights = d_weight_rows.reshape(-1).at[plan.slot].get(mode="fill", fill_value=0)

    def tile(i: Array):
        """What the gradients of tile i are made of, in both loops."""
        index, e = plan.tile_source[i], plan.tile_expert[i]
        x_tile, w_tile = _rows(x, index, weights)
        once = precision.quantize_for_fprop(x_tile)
        h = precision.fprop(once, _expert(held_gate_up, e)).astype(dy.dtype)
        g = precision.quantize_grad(_rows(dy, index, weights)[0])
        dz = precision.dgrad(g, _expert(held_down, e)).astype(dy.dtype)
        dh = precision.quantize_grad(swiglu.gradient(h, dz * w_tile[:, None]))
        return index, e, x_tile, w_tile, swiglu.hidden(h), g, dz, dh

    def add_input(i: Array, state):
        dx, d_weights = state
        index, e, _, _, z, _, dz, dh = tile(i)
        dx_tile = precision.dgrad(dh, _expert(held_gate_up, e)).astype(dy.dtype)
        return (
            dx.at[index // per_token].add(dx_tile, mode="drop"),
            d_weights.reshape(-1).at[index].add((dz * z).sum(-1), mode="drop").reshape(
                weights.shape),
        )

    def add_weight(i: Array, state):
        d_gate_up, d_down = state
        _, e, x_tile, w_tile, z, g, _, dh = tile(i)
        d_down_tile = precision.wgrad(precision.quantize_for_wgrad(z * w_tile[:, None]), g)
        return (
            _add_at(d_gate_up, e, precision.wgrad(precision.quantize_for_wgrad(x_tile), dh)),
            _add_at(d_down, e, d_down_tile),
        )

    # two loops, so that what goes back to the tokens' devices need not wait for the weights'
    used, start = plan.tiles_used, (dx, d_weights.astype(weights.dtype))
    dx, d_weights = lax.fori_loop(0, used, add_input, start)
    d_gate_up, d_down = lax.fori_loop(0, used, add_weight, (d_gate_up, d_down))
    return dx, d_weights, d_gate_up, d_down, None, None, None


def _add_at(total: Array, e: Array, part: Array) -> Array:
    here = lax.dynamic_index_in_dim(total, e, 0, keepdims=False)
    return lax.dynamic_update_index_in_dim(total, here + part, e, 0)


_experts.defvjp(_forward, _backward)
