"""The products of routed experts on rows that lie by expert (V3 report eq. 12), and their gradient.

    hidden_in = rows W_gate_up        hidden = silu(gate) * up * w        y = hidden W_down

The routing weight w multiplies the hidden activation, as in the official training kernels
(TileKernels, swiglu): then combining is a plain sum and the weight's own gradient is a row sum.

`ExpertMLP` is the seam where a kernel takes their place: operands come as the precision quantized
them, in rows of one expert [C, D] or of all [E, C, D].

Axes: E experts, C rows of an expert, D model, F expert hidden.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from jax import Array

from dsjax.numerics.precision import Operand, Precision
from dsjax.ops import swiglu


class MLPGrads(NamedTuple):
    """Gradients of one call: rows, routing weights and the two matrices."""

    rows: Array  # [..., C, D]
    weights: Array  # [..., C]
    gate_up: Array  # [..., D, 2F] float32
    down: Array  # [..., F, D] float32


@dataclass(frozen=True)
class ExpertMLP:
    """Two functions of rows by expert; `precision` says how operands come to them.

    forward(rows, w, gate_up, down, dtype) -> y [..., C, D] and hidden_in [..., C, 2F], both in
    dtype, from quantized rows [..., C, D], routing weights w [..., C, 1] and quantized matrices.
    backward(rows, w, hidden_in, dy, gate_up, down) -> MLPGrads, from rows and hidden_in as arrays.
    """

    precision: Precision
    forward: Callable[..., tuple[Array, Array]]
    backward: Callable[..., MLPGrads]


@functools.cache
def batched(precision: Precision) -> ExpertMLP:
    """Batched products in a precision, for XLA."""
    return ExpertMLP(precision, functools.partial(_forward, precision),
                     functools.partial(_backward, precision))


def _forward(precision: Precision, rows: Operand, w: Array, gate_up: Operand, down: Operand,
             dtype) -> tuple[Array, Array]:
    hidden_in = precision.fprop(rows, gate_up).astype(dtype)
    hidden = precision.quantize_for_fprop(swiglu.hidden(hidden_in) * w)
    return precision.fprop(hidden, down).astype(dtype), hidden_in


def _backward(precision: Precision, rows: Array, w: Array, hidden_in: Array, dy: Array,
              gate_up: Operand, down: Operand) -> MLPGrads:
    grad = precision.quantize_grad(dy)
    d_weighted = precision.dgrad(grad, down).astype(dy.dtype)
    hidden = swiglu.hidden(hidden_in)
    d_hidden_in = precision.quantize_grad(swiglu.gradient(hidden_in, d_weighted * w))
    return MLPGrads(
        rows=precision.dgrad(d_hidden_in, gate_up).astype(dy.dtype),
        weights=(d_weighted * hidden).sum(-1),
        gate_up=precision.wgrad(precision.quantize_for_wgrad(rows), d_hidden_in),
        down=precision.wgrad(precision.quantize_for_wgrad(hidden * w), grad),
    )
