"""Contraction of x with a weight, in any precision (V3 report sec. 3.3).

`linear` is the one way a layer multiplies by a matrix that may be quantized. Its gradient is
the other two products, Dgrad and Wgrad, read from quantized operands; the input is kept quantized
for the backward pass, and the weight's gradient is float32 and belongs to the master.
"""

from __future__ import annotations

import functools

import jax
from jax import Array

from dsjax.numerics.precision import Matrix, Operand, Precision, Weight, weight_of
from dsjax.numerics.scaled import Scaled


def linear(x: Array, w: Matrix, contract: int = 1, *, precision: Precision) -> Array:
    """Sum the last `contract` dims of x against the first of w.

    x [..., K], w [K, ...] (K may be several dims). Returns [..., columns of w] in x's dtype; the
    columns are one dim where w rests in 8 bits.
    """
    flat, quantized = weight_of(w, precision, 0, contract)
    master = w.master if isinstance(w, Weight) else w
    columns = flat.shape[1:] if isinstance(master, Scaled) else master.shape[contract:]
    y = _product(precision, x.reshape(-1, flat.shape[0]), flat, quantized)
    return y.reshape(*x.shape[: x.ndim - contract], *columns)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _product(precision: Precision, x: Array, master: Array, quantized: Operand) -> Array:
    """x [M, K] against quantized [K, N]; the gradient of the weight goes to `master`."""
    return precision.fprop(precision.quantize_for_fprop(x), quantized).astype(x.dtype)


def _product_forward(
    precision: Precision, x: Array, master: Array, quantized: Operand
) -> tuple[Array, tuple[Operand, Operand]]:
    return _product(precision, x, master, quantized), (precision.quantize_input(x), quantized)


def _product_backward(
    precision: Precision, kept: tuple[Operand, Operand], dy: Array
) -> tuple[Array, Array, None]:
    x, quantized = kept
    grad = precision.quantize_grad(dy)
    return precision.dgrad(grad, quantized).astype(dy.dtype), precision.wgrad(x, grad), None


_product.defvjp(_product_forward, _product_backward)

