"""The routed experts' SwiGLU for a handful of tokens (V3 report eq. 12).

Decoding is bound by reading weights. With fewer assignments than experts, the batched form of
`experts` reads experts nobody chose and pads each to eight rows; here every assignment is two
products of its own, one after the other in a loop. No gradient.

Axes: T tokens, K experts per token, A assignments (T*K), E experts, D model, F expert hidden.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import Array, lax

from dsjax.numerics.precision import Matrix, Operand, Precision, weight_of

MOST = 16  # assignments at most


def is_few(assignments: int, experts: int) -> bool:
    """Return True if assignments one by one beat batching: fewer than experts, and few."""
    return assignments < experts and assignments <= MOST


def experts_few(x: Array, experts: Array, weights: Array, w_gate_up: Matrix, w_down: Matrix,
                *, precision: Precision) -> Array:
    """The chosen experts of every token, weighted and summed.

    x [T, D], experts and weights [T, K], w_gate_up [E, D, 2, F], w_down [E, F, D]. Returns [T, D].
    """
    def one(asked: tuple[Array, Array, Array]) -> Array:
        row, expert, weight = asked
        pair = ([_of_expert(w, expert, precision, parts)]
                for w, parts in ((w_gate_up, 2), (w_down, 1)))
        return assignments(row[None], weight[None, None], *pair, precision=precision)[0, 0]

    rows = jnp.repeat(x, experts.shape[1], axis=0)
    y = lax.map(one, (rows, experts.reshape(-1), weights.reshape(-1)))
    return y.reshape(*experts.shape, -1).sum(axis=1)


def assignments(x: Array, weights: Array, gate_ups: Sequence[Operand], downs: Sequence[Operand],
                *, precision: Precision) -> Array:
    """Outputs [T, K, D], weighted, of one expert's two matrices for each assignment.

    x [T, D], weights [T, K], A operands [D, 2F] and [F, D].
    """
    per_token = weights.shape[1]
    rows = [x[a // per_token][None] for a in range(weights.size)]
    hidden_in = _multiply(rows, gate_ups, precision).astype(x.dtype)
    gate, up = jnp.split(hidden_in, 2, axis=-1)
    hidden = jax.nn.silu(gate) * up * weights.reshape(-1, 1).astype(x.dtype)
    y = _multiply([row[None] for row in hidden], downs, precision).astype(x.dtype)
    return y.reshape(*weights.shape, -1)


def _multiply(rows: Sequence[Array], matrices: Sequence[Operand], precision: Precision) -> Array:
    """Each row [1, K] against its own expert's matrix [K, N] -> [A, N] float32."""
    return jnp.concatenate([precision.fprop(precision.quantize_input(row), matrix)
                            for row, matrix in zip(rows, matrices, strict=True)])


def _of_expert(w: Matrix, expert: Array, precision: Precision, parts: int) -> Operand:
    """One expert's matrix, which alone is quantized, or decoded where it rests in 8 bits."""
    one = jax.tree.map(lambda a: lax.dynamic_index_in_dim(a, expert, 0, keepdims=False), w)
    return weight_of(one, precision, 0, 1, parts)[1]
