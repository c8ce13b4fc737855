"""The house contraction: x against a weight, in whatever precision holds it (V3 report sec. 3.3).

`linear` is the one way a layer multiplies by a matrix that low precision may hold. Its gradient is
the other two products, Dgrad and Wgrad, read from held operands; the input is kept for the backward
pass as it was held, and the weight's gradient is float32 and belongs to the master.
"""

from __future__ import annotations

import functools

import jax
from jax import Array

from dsjax.numerics.precision import Held, Matrix, Products, Weight, weight_of
from dsjax.numerics.scaled import Scaled


def linear(x: Array, w: Matrix, contract: int = 1, *, products: Products) -> Array:
    """Sum the last `contract` dims of x against the first of w.

    x [..., K], w [K, ...] (K may be several dims). Returns [..., columns of w] in x's dtype; the
    columns are one dim where w rests in 8 bits.
    """
    flat, held = weight_of(w, products, 0, contract)
    master = w.master if isinstance(w, Weight) else w
    columns = flat.shape[1:] if isinstance(master, Scaled) else master.shape[contract:]
    y = _product(products, x.reshape(-1, flat.shape[0]), flat, held)
    return y.reshape(*x.shape[: x.ndim - contract], *columns)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _product(products: Products, x: Array, master: Array, held: Held) -> Array:
    """x [M, K] against held [K, N]; the gradient of the weight goes to `master`."""
    return products.fprop(products.hold_once(x), held).astype(x.dtype)


def _product_forward(
    products: Products, x: Array, master: Array, held: Held
) -> tuple[Array, tuple[Held, Held]]:
    return _product(products, x, master, held), (products.hold_input(x), held)


def _product_backward(
    products: Products, kept: tuple[Held, Held], dy: Array
) -> tuple[Array, Array, None]:
    x, held = kept
    grad = products.hold_grad(dy)
    return products.dgrad(grad, held).astype(dy.dtype), products.wgrad(x, grad), None


_product.defvjp(_product_forward, _product_backward)

