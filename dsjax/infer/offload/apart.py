"""The routed experts of every token, each assignment's output kept apart (V3 report eq. 12).

    y[t, k] = weights[t, k] * expert[t, k](x[t])

The other forms read a stack of all experts and hand out sums over k. Here the stack may hold any
experts in any order, and only some of those that tokens chose: an assignment whose expert is out of
range leaves its output as it was. Outputs of several calls, each with other experts in the stack,
are then the outputs of one call with all of them, to the bit, and so is their sum over k. No
gradient.

Few assignments in float32 are written out, see `experts_few`. Others lie in tiles of one expert
each, in a loop over the tiles in use, so that nothing of the stack is read but the chosen experts;
so do few of narrow operands, whose products with a single row a CPU makes in float32, after it has
widened the matrix. The form depends on the number of assignments and on the precision alone, not on
the stack's length.

Axes: T tokens, K experts per token, A assignments (T*K), S experts of the stack, D model, F expert
hidden.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array, lax

from dsjax.ops import experts_few
from dsjax.ops.expert_mlp import ExpertMLP
from dsjax.ops.expert_stack import Stack
from dsjax.ops.experts import TILE, make_plan, permute

FEW_TOKENS = 64  # up to which an expert has so few rows that a tile of TILE would be mostly empty
SMALL_TILE = 8


def experts_apart(x: Array, experts: Array, weights: Array, gate_up: Stack, down: Stack,
                  *, mlp: ExpertMLP, into: Array | None = None) -> Array:
    """Outputs [T, K, D] of the chosen experts of every token, weighted.

    x [T, D], experts (their slots) and weights [T, K], stacks of [D, 2F] and [F, D]. `into`
    [T, K, D] is what stays where an expert is not in [0, S); zeros by default.
    """
    if into is None:
        into = jnp.zeros((*experts.shape, x.shape[-1]), x.dtype)
    is_wide = mlp.precision.operand_dtype is None
    if experts.size > experts_few.WRITTEN_OUT or not is_wide:
        return _in_tiles(x, experts, weights, (gate_up, down), mlp, into)
    places = jnp.clip(experts.reshape(-1), 0, down.count - 1)
    gate_ups, downs = ([w.of(place, mlp.precision) for place in places] for w in (gate_up, down))
    y = experts_few.assignments(x, weights, gate_ups, downs, precision=mlp.precision)
    is_here = (experts >= 0) & (experts < down.count)
    return jnp.where(is_here[..., None], y, into)


def _in_tiles(x: Array, experts: Array, weights: Array, stacks: tuple[Stack, Stack],
              mlp: ExpertMLP, into: Array) -> Array:
    tile = SMALL_TILE if x.shape[0] <= FEW_TOKENS else TILE
    plan = make_plan(experts, stacks[1].count, 0, tile)
    once = mlp.precision.quantize_for_fprop(x)

    def add_tile(i: Array, y: Array) -> Array:
        index = plan.tile_source[i]
        rows, w = permute(once, index, weights)
        gate_up, down = (stack.of(plan.tile_expert[i], mlp.precision) for stack in stacks)
        y_tile, _ = mlp.forward(rows, w, gate_up, down, x.dtype)
        return y.at[index].set(y_tile.astype(y.dtype), mode="drop")

    flat = lax.fori_loop(0, plan.tiles_used, add_tile, into.reshape(-1, x.shape[-1]))
    return flat.reshape(into.shape)
