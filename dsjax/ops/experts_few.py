"""The routed experts' SwiGLU for a handful of tokens (V3 report eq. 12).

Decoding is bound by reading weights. With fewer assignments than experts, the batched form of
`experts` reads experts nobody chose and pads each to eight rows; here every assignment is written
out as its own two products. (A loop over assignments compiles in three quarters of the time and
decodes as fast on a CPU; on a GPU it was not tried.) No gradient.

Axes: T tokens, K experts per token, A assignments (T*K), E experts, D model, F expert hidden.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import Array, lax

from dsjax.numerics.precision import Matrix, Operand, Precision, weight_of
from dsjax.numerics.scaled import Scaled

WRITTEN_OUT = 16  # assignments a program holds at most


def is_few(assignments: int, experts: int) -> bool:
    """Return True if writing assignments out beats batching: fewer than experts, and few."""
    return assignments < experts and assignments <= WRITTEN_OUT


def experts_few(x: Array, experts: Array, weights: Array, w_gate_up: Matrix, w_down: Matrix,
                *, precision: Precision) -> Array:
    """The chosen experts of every token, weighted and summed.

    x [T, D], experts and weights [T, K], w_gate_up [E, D, 2, F], w_down [E, F, D]. Returns [T, D].
    """
    chosen = [experts.reshape(-1)[a] for a in range(experts.size)]
    gate_ups, downs = (_sliced(w, chosen, precision, parts)
                       for w, parts in ((w_gate_up, 2), (w_down, 1)))
    return assignments(x, weights, gate_ups, downs, precision=precision).sum(axis=1)


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


def _sliced(w: Matrix, chosen: Sequence[Array], precision: Precision,
            parts: int) -> list[Operand]:
    """The chosen experts' matrices; of those that rest in 8 bits only these are decoded."""
    is_resting = isinstance(w, Scaled)
    stacked = w if is_resting else weight_of(w, precision, 1, 1, parts)[1]
    made = [jax.tree.map(lambda a, e=expert: lax.dynamic_index_in_dim(a, e, 0, keepdims=False),
                         stacked) for expert in chosen]
    return [precision.from_codes(one) for one in made] if is_resting else made
