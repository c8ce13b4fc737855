"""The routed experts on one device, no token dropped (V3 report eq. 12): permute, MLP, combine.

`experts_plain` says what is computed. `experts_batched` is its fast form: `permute` gives every
assignment a row by its expert, an `ExpertMLP` multiplies, `combine` adds up each token's rows. The
first C rows of every expert go through one batched product, C a little over the mean load; what
overflows goes through a loop over the tiles in use, usually none. The gradient is written by hand,
so that gathers stay gathers in the backward pass and a weight's gradient is one batched product.

Axes: T tokens, K experts per token, E experts, C rows an expert, D model, F expert hidden.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from dsjax.numerics.precision import Matrix, Operand, name, weight_of
from dsjax.numerics.wide import exact
from dsjax.ops import buckets, swiglu
from dsjax.ops.expert_mlp import ExpertMLP, MLPGrads

TILE = 64  # rows of one overflow tile
CAPACITY_FACTOR = 1.125  # capacity factor: C over the mean load


class Plan(NamedTuple):
    """Layout of assignments (token, choice) in rows; T*K marks an empty row.

    The batched part has rows [E * C]; overflow tiles of some rows each belong to one expert.
    """

    source: Array  # [E * C] assignment in each row
    slot: Array  # [T, K] row of each assignment, E * C when it overflowed
    tile_source: Array  # [tiles, rows] assignment in each overflow row
    tile_expert: Array  # [tiles]
    tiles_used: Array  # []


def experts_plain(x: Array, experts: Array, weights: Array, w_gate_up: Array,
                  w_down: Array) -> Array:
    """The clear form: every expert on every token, kept where it was chosen.

    x [T, D], experts and weights [T, K], w_gate_up [E, D, 2, F], w_down [E, F, D]. Returns [T, D].
    """
    chosen = jax.nn.one_hot(experts, w_down.shape[0], dtype=x.dtype)
    asked = exact(x.dtype)
    by_expert = jnp.einsum("tk,tke->te", weights.astype(x.dtype), chosen, precision=asked)
    gate_up = jnp.einsum("td,edgf->tegf", x, w_gate_up, precision=asked)
    hidden = jax.nn.silu(gate_up[:, :, 0]) * gate_up[:, :, 1]
    return jnp.einsum("te,tef,efd->td", by_expert, hidden, w_down, precision=asked)


def experts_batched(x: Array, experts: Array, weights: Array, w_gate_up: Matrix, w_down: Matrix,
                    *, mlp: ExpertMLP, assignments: int | None = None) -> Array:
    """The chosen experts of every token, weighted and summed; shapes as `experts_plain`.

    An expert out of range is not here: its assignment takes no row and adds nothing. `assignments`
    is how many to expect here; None is all of T*K.
    """
    gate_up, gate_up_operand = weight_of(w_gate_up, mlp.precision, 1, 1, parts=2)
    down, down_operand = weight_of(w_down, mlp.precision, 1, 1)
    capacity = _capacity(assignments or experts.size, down.shape[0])
    plan = make_plan(experts, down.shape[0], capacity)
    return _experts(mlp, x, weights, gate_up, down, Operands(gate_up_operand, down_operand), plan)


def experts_tiled(x: Array, experts: Array, weights: Array, w_gate_up: Matrix, w_down: Matrix,
                  *, mlp: ExpertMLP) -> Array:
    """The chosen experts of every token, all in tiles of one expert each; shapes as there.

    A token's sum is made in the order of its experts' numbers and its rows' products have one
    shape, so that its bits do not depend on what the other tokens chose. Work grows with the tiles
    in use. No gradient.
    """
    _, gate_up = weight_of(w_gate_up, mlp.precision, 1, 1, parts=2)
    down_master, down = weight_of(w_down, mlp.precision, 1, 1)
    plan = make_plan(experts, down_master.shape[0], 0, min(x.shape[0], TILE))
    return _add_tiles(mlp, jnp.zeros_like(x), mlp.precision.quantize_for_fprop(x), weights,
                      Operands(gate_up, down), plan)


def experts_dense(x: Array, experts: Array, weights: Array, w_gate_up: Matrix, w_down: Matrix,
                  *, mlp: ExpertMLP) -> Array:
    """Every expert on every token, of which the chosen ones are summed; shapes as there.

    A token's bits do not depend on what the others chose: all products have one shape, and nothing
    is permuted. For few tokens, whose experts' weights are what takes time. No gradient.
    """
    _, gate_up = weight_of(w_gate_up, mlp.precision, 1, 1, parts=2)
    down_master, down = weight_of(w_down, mlp.precision, 1, 1)
    is_chosen = jax.nn.one_hot(experts, down_master.shape[0], dtype=bool)  # [T, K, E]
    by_expert = jnp.where(is_chosen, weights[..., None], 0).sum(axis=1).T[..., None]  # [E, T, 1]
    once = mlp.precision.quantize_for_fprop(x)
    rows = jax.tree.map(lambda a: jnp.broadcast_to(a, (len(by_expert), *a.shape)), once)
    y, _ = mlp.forward(rows, by_expert, gate_up, down, x.dtype)
    return jnp.where(is_chosen.any(axis=1).T[..., None], y, 0).sum(axis=0)


class Operands(NamedTuple):
    """The two matrices as products read them."""

    gate_up: Operand  # [E, D, 2F]
    down: Operand  # [E, F, D]

    def of(self, e: Array) -> Operands:
        """One expert's."""
        return jax.tree.map(lambda a: lax.dynamic_index_in_dim(a, e, 0, keepdims=False), self)


def _capacity(assignments: int, experts: int) -> int:
    """Rows of an expert in the batched part: mean load times capacity factor, in eights."""
    return min(assignments, math.ceil(assignments / experts * CAPACITY_FACTOR / 8) * 8)


def make_plan(experts: Array, count: int, capacity: int, tile: int = TILE) -> Plan:
    """Give each assignment a row, in order within its expert. experts [T, K] int32.

    Those outside [0, count) get rows beyond the last. `tile` is how many rows an overflow tile has.
    """
    total = experts.size
    flat = lax.optimization_barrier(experts.reshape(-1))  # see ops/buckets.py
    is_here = (flat >= 0) & (flat < count)
    expert = jnp.where(is_here, flat, 0)
    loads, position = buckets.sizes(flat, count), buckets.places(flat, count)
    at = jnp.arange(total, dtype=jnp.int32)
    tiles = -(-jnp.maximum(loads - capacity, 0) // tile)
    last_tile = jnp.cumsum(tiles)
    max_tiles = (total - 1) // tile + count
    rows = count * capacity
    overflow_row = rows + (last_tile - tiles)[expert] * tile + position - capacity
    row = jnp.where(position < capacity, expert * capacity + position, overflow_row)
    slot = jnp.where(is_here, row, rows + max_tiles * tile + at)
    source = jnp.full(rows + max_tiles * tile, total, jnp.int32).at[slot].set(
        at, unique_indices=True)
    tile_expert = jnp.searchsorted(
        last_tile, jnp.arange(max_tiles, dtype=jnp.int32), side="right").astype(jnp.int32)
    return Plan(
        source=source[:rows],
        slot=jnp.minimum(slot, rows).reshape(experts.shape),
        tile_source=source[rows:].reshape(max_tiles, tile),
        tile_expert=jnp.minimum(tile_expert, count - 1),
        tiles_used=last_tile[-1],
    )


def permute(x: Operand, index: Array, weights: Array) -> tuple[Operand, Array]:
    """Tokens and routing weights of the assignments `index`, zero where a row is empty.

    Tokens are quantized before they are permuted: in FP8 bytes move (V3 report sec. 3.3.3).
    """
    token = index // weights.shape[1]

    def gather(a: Array) -> Array:
        if a.dtype.itemsize > 1:
            return a.at[token].get(mode="fill", fill_value=0)
        rows = lax.bitcast_convert_type(a, jnp.uint8).at[token].get(mode="fill", fill_value=0)
        return lax.bitcast_convert_type(rows, a.dtype)

    w_rows = weights.reshape(-1).at[index].get(mode="fill", fill_value=0)
    return jax.tree.map(gather, x), w_rows[..., None]


def by_expert(rows: Operand, count: int) -> Operand:
    """Rows [E * C, ...] as [E, C, ...]."""
    return jax.tree.map(lambda a: a.reshape(count, -1, *a.shape[1:]), rows)


def combine(y: Array, slot: Array) -> Array:
    """Sum each token's K rows: y [E, C, D], slot [T, K] (out of range adds nothing) -> [T, D]."""
    rows = y.reshape(-1, y.shape[-1]).at[slot.reshape(-1)].get(mode="fill", fill_value=0)
    return rows.reshape(*slot.shape, -1).sum(axis=1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _experts(mlp: ExpertMLP, x: Array, weights: Array, gate_up: Array, down: Array,
             operands: Operands, plan: Plan) -> Array:
    return _forward(mlp, x, weights, gate_up, down, operands, plan)[0]


def _forward(mlp, x, weights, gate_up, down, operands, plan):
    count = down.shape[0]
    saved = name(mlp.precision.quantize_input(x), "expert_input")
    once = mlp.precision.quantize_for_fprop(x)
    x_rows, w_rows = by_expert(permute(once, plan.source, weights), count)
    y_rows, hidden_in = mlp.forward(x_rows, w_rows, *operands, x.dtype)
    y = _add_tiles(mlp, combine(y_rows, plan.slot), once, weights, operands, plan)
    saved_hidden = swiglu.save(hidden_in, mlp.precision)
    return y, (weights, operands, plan, saved, saved_hidden)


def _add_tiles(mlp: ExpertMLP, y: Array, once: Operand, weights: Array, operands: Operands,
               plan: Plan) -> Array:
    """Add the overflow tiles in use to y [T, D]; `once` are quantized tokens."""
    def add_tile(i: Array, total: Array) -> Array:
        index = plan.tile_source[i]
        rows, w = permute(once, index, weights)
        y_tile, _ = mlp.forward(rows, w, *operands.of(plan.tile_expert[i]), y.dtype)
        return total.at[index // weights.shape[1]].add(y_tile.astype(y.dtype), mode="drop")

    return lax.fori_loop(0, plan.tiles_used, add_tile, y)


def _backward(mlp, residuals, dy):
    weights, operands, plan, saved, saved_hidden = residuals
    hidden_in = mlp.precision.restore(saved_hidden).astype(dy.dtype)
    x = mlp.precision.restore(saved)
    count, per_token = hidden_in.shape[0], weights.shape[1]
    dy_rows, w_rows = by_expert(permute(dy, plan.source, weights), count)
    x_rows = by_expert(permute(x, plan.source, weights)[0], count)
    grads = mlp.backward(x_rows, w_rows, hidden_in, dy_rows, *operands)
    dx = combine(grads.rows, plan.slot)
    d_weights = grads.weights.reshape(-1).at[plan.slot].get(mode="fill", fill_value=0)

    def tile(i: Array) -> tuple[Array, Array, MLPGrads]:
        """Gradients of an overflow tile; each of the two loops computes those that it adds."""
        index, e = plan.tile_source[i], plan.tile_expert[i]
        rows, w = permute(x, index, weights)
        of_expert = operands.of(e)
        once = mlp.precision.quantize_for_fprop(rows)
        _, hidden_in = mlp.forward(once, w, *of_expert, dy.dtype)
        d_tile = permute(dy, index, weights)[0]
        return index, e, mlp.backward(rows, w, hidden_in, d_tile, *of_expert)

    def add_input(i: Array, state):
        dx, d_weights = state
        index, _, found = tile(i)
        d_flat = d_weights.reshape(-1).at[index].add(found.weights, mode="drop")
        return (dx.at[index // per_token].add(found.rows, mode="drop"),
                d_flat.reshape(weights.shape))

    def add_weight(i: Array, state):
        d_gate_up, d_down = state
        _, e, found = tile(i)
        return _add_at(d_gate_up, e, found.gate_up), _add_at(d_down, e, found.down)

    # two loops, so that what goes back to the tokens' devices need not wait for the weights'
    used, start = plan.tiles_used, (dx, d_weights.astype(weights.dtype))
    dx, d_weights = lax.fori_loop(0, used, add_input, start)
    d_gate_up, d_down = lax.fori_loop(0, used, add_weight, (grads.gate_up, grads.down))
    return dx, d_weights, d_gate_up, d_down, None, None


def _add_at(total: Array, e: Array, part: Array) -> Array:
    here = lax.dynamic_index_in_dim(total, e, 0, keepdims=False)
    return lax.dynamic_update_index_in_dim(total, here + part, e, 0)


_experts.defvjp(_forward, _backward)
