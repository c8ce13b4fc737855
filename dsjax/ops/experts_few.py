"""The routed experts' SwiGLU for a handful of tokens (V3 report eq. 12).

Decoding is bound by reading weights. With fewer assignments than experts, the batched form of
`experts` reads experts nobody chose and pads each to eight rows; here every assignment is written
out as its own two products, whose slice of the stacked weights the compiler reads in place (inside
a loop it copies the slice first, which costs as much as the batched form). No gradient.

Axes: T tokens, K experts per token, A assignments (T*K), E experts, D model, F expert hidden.
"""

from __future__ import annotations

from typing import NamedTuple

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
    return assignments(x, experts, weights, w_gate_up, w_down, precision=precision).sum(axis=1)


def assignments(x: Array, experts: Array, weights: Array, w_gate_up: Matrix, w_down: Matrix,
                *, precision: Precision) -> Array:
    """Outputs [T, K, D] that `experts_few` adds up, from the same arguments."""
    per_token = experts.shape[1]
    chosen = [experts.reshape(-1)[a] for a in range(experts.size)]
    gate_up, down = _quantized(w_gate_up, precision, parts=2), _quantized(w_down, precision)
    rows = [x[a // per_token][None] for a in range(experts.size)]
    hidden_in = _multiply(rows, gate_up, chosen, precision).astype(x.dtype)
    gate, up = jnp.split(hidden_in, 2, axis=-1)
    hidden = jax.nn.silu(gate) * up * weights.reshape(-1, 1).astype(x.dtype)
    y = _multiply([row[None] for row in hidden], down, chosen, precision).astype(x.dtype)
    return y.reshape(*experts.shape, -1)


def _multiply(rows: list[Array], quantized: _Quantized, chosen: list[Array],
              precision: Precision) -> Array:
    """Each row [1, K] against its own expert's matrix [K, N] -> [A, N] float32."""
    outs = []
    for row, expert in zip(rows, chosen, strict=True):
        matrix = jax.tree.map(
            lambda a, e=expert: lax.dynamic_index_in_dim(a, e, 0, keepdims=False), quantized.stacked
        )
        if quantized.is_resting:
            matrix = precision.from_codes(matrix)
        outs.append(precision.fprop(precision.quantize_input(row), matrix))
    return jnp.concatenate(outs)


class _Quantized(NamedTuple):
    """Stacked matrices [E, K, ...]: in the form that products read, or resting in 8 bits."""

    stacked: Operand
    is_resting: bool


def _quantized(w: Matrix, precision: Precision, parts: int = 1) -> _Quantized:
    """Return the matrices to slice; of those that rest in 8 bits only the chosen are decoded."""
    if isinstance(w, Scaled):
        return _Quantized(w, True)
    return _Quantized(weight_of(w, precision, 1, 1, parts)[1], False)
