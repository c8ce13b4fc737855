"""The routed experts of every token, each assignment's output kept apart (V3 report eq. 12).

    y[t, k] = weights[t, k] * expert[t, k](x[t])

The other forms read a stack of all experts and hand out sums over k. Here the stack may hold any
experts in any order, and only some of those that tokens chose: an assignment whose expert is out of
range leaves its output as it was. Outputs of several calls, each with other experts in the stack,
are then the outputs of one call with all of them, to the bit, and so is their sum over k. No
gradient.

Few assignments are written out, see `experts_few`. More lie in tiles of one expert each, in a loop
over the tiles in use, so that nothing of the stack is read but the chosen experts. Which form it is
depends on the number of assignments alone, not on the stack's length.

Axes: T tokens, K experts per token, A assignments (T*K), S experts of the stack, D model, F expert
hidden.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array, lax

from dsjax.numerics.precision import Matrix, Operand, Precision, Weight
from dsjax.numerics.scaled import Scaled
from dsjax.ops import experts_few
from dsjax.ops.expert_mlp import ExpertMLP
from dsjax.ops.experts import TILE, make_plan, permute

FEW_TOKENS = 64  # up to which an expert has so few rows that a tile of TILE would be mostly empty
SMALL_TILE = 8


def experts_apart(x: Array, experts: Array, weights: Array, w_gate_up: Matrix, w_down: Matrix,
                  *, mlp: ExpertMLP, into: Array | None = None) -> Array:
    """Outputs [T, K, D] of the chosen experts of every token, weighted.

    x [T, D], experts and weights [T, K], w_gate_up [S, D, 2, F], w_down [S, F, D]. `into` [T, K, D]
    is what stays where an expert is not in [0, S); zeros by default.
    """
    if into is None:
        into = jnp.zeros((*experts.shape, x.shape[-1]), x.dtype)
    if experts.size <= experts_few.WRITTEN_OUT:
        count = count_of(w_down)
        y = experts_few.assignments(x, jnp.clip(experts, 0, count - 1), weights, w_gate_up, w_down,
                                    precision=mlp.precision)
        is_here = (experts >= 0) & (experts < count)
        return jnp.where(is_here[..., None], y, into)
    return _in_tiles(x, experts, weights, (w_gate_up, w_down), mlp, into)


def count_of(w: Matrix) -> int:
    """Experts of a stack, S."""
    return jax.tree.leaves(w.held if isinstance(w, Weight) else w)[0].shape[0]


def _in_tiles(x: Array, experts: Array, weights: Array, stacks: tuple[Matrix, Matrix],
              mlp: ExpertMLP, into: Array) -> Array:
    tile = SMALL_TILE if x.shape[0] <= FEW_TOKENS else TILE
    plan = make_plan(experts, count_of(stacks[1]), 0, tile)
    once = mlp.precision.quantize_for_fprop(x)

    def add_tile(i: Array, y: Array) -> Array:
        index = plan.tile_source[i]
        rows, w = permute(once, index, weights)
        gate_up, down = (_of(stack, plan.tile_expert[i], mlp.precision, parts)
                         for stack, parts in zip(stacks, (2, 1)))
        y_tile, _ = mlp.forward(rows, w, gate_up, down, x.dtype)
        return y.at[index].set(y_tile.astype(y.dtype), mode="drop")

    flat = lax.fori_loop(0, plan.tiles_used, add_tile, into.reshape(-1, x.shape[-1]))
    return flat.reshape(into.shape)


def _of(stack: Matrix, e: Array, precision: Precision, parts: int) -> Operand:
    """One expert's matrix [K, N] as products read it; made of the one alone, not of the stack."""
    whole = stack.held if isinstance(stack, Weight) else stack
    one = jax.tree.map(lambda a: lax.dynamic_index_in_dim(a, e, 0, keepdims=False), whole)
    if isinstance(stack, Weight):
        return one
    if isinstance(one, Scaled):
        return precision.from_codes(one)
    return precision.quantize_weight(one.reshape(one.shape[0], -1), parts)
