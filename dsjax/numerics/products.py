"""The three products of a Linear and what each precision holds for them (V3 report sec. 3.3).

A product is Fprop `y = x w`, Dgrad `dx = dy w^T` and Wgrad `dw = x^T dy`. A precision says how the
operands are held, and each of the three reads held operands and returns float32 accumulations:

    float32    operands as they are
    bfloat16   operands rounded to bfloat16, exact products, float32 sums

Layers never ask. They call `linear` or an expert product with a weight that is a plain array or a
`Weight`: the float32 master, which receives the gradient, beside the form that products read,
made once per optimizer step (`hold_weights`), not once per microbatch.

Axes: M rows (tokens), K summed channels, N columns; E leads where experts are batched.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array, lax

from dsjax import params
from dsjax.numerics.wide import wide

Held = Any  # an operand as a precision keeps it: an array, or codes with scales


@dataclasses.dataclass(frozen=True)
class Products:
    """How one precision holds operands and multiplies them; every array is [..., M, K] or [..., K, N].

    Leading dims of all operands are equal and batched (experts), or absent. `fprop`, `dgrad` and
    `wgrad` read what `hold_input`, `hold_weight` and `hold_grad` made, and return float32.
    """

    name: str
    hold_input: Callable[[Array], Held]
    hold_weight: Callable[[Array], Held]
    hold_grad: Callable[[Array], Held]
    fprop: Callable[[Held, Held], Array]
    dgrad: Callable[[Held, Held], Array]
    wgrad: Callable[[Held, Held], Array]


@struct.dataclass
class Weight:
    """A matrix inside a step: `master` receives the gradient, `held` is what products read."""

    master: Array
    held: Held


def _dot(a: Array, b: Array, contract_a: int, contract_b: int) -> Array:
    """Contract one dim of each (counted from the end), leading dims batched, wide sums out."""
    batch = tuple(range(a.ndim - 2))
    dims = (((a.ndim - contract_a,), (b.ndim - contract_b,)), (batch, batch))
    return lax.dot_general(a, b, dims, preferred_element_type=wide(a.dtype))


def plain_products(name: str, dtype: jnp.dtype) -> Products:
    """Products whose operands are arrays of one dtype and whose sums are float32."""

    def hold(x: Array) -> Array:
        return x.astype(dtype)

    return Products(
        name=name,
        hold_input=hold,
        hold_weight=hold,
        hold_grad=hold,
        fprop=lambda x, w: _dot(x, w, 1, 2),
        dgrad=lambda dy, w: _dot(dy, w, 1, 1),
        wgrad=lambda x, dy: _dot(x, dy, 2, 2),
    )


FP32 = plain_products("fp32", jnp.dtype(jnp.float32))
BF16 = plain_products("bf16", jnp.dtype(jnp.bfloat16))


def hold_weights(tree: params.Tree, specs: params.Tree, products: Products) -> params.Tree:
    """Wrap every product matrix of a parameter tree as a Weight, held once for the whole step.

    Held matrices are [..., K, N]: dims that a product sums over are merged, so are its columns.
    """

    def wrap(spec: params.Spec, leaf: Array) -> Array | Weight:
        if not spec.is_product:
            return leaf
        return Weight(leaf, products.hold_weight(as_matrix(leaf, spec.batch_dims, spec)))

    return jax.tree.map(wrap, specs, tree, is_leaf=params.is_spec)


def as_matrix(w: Array, batch_dims: int, spec: params.Spec) -> Array:
    """Merge a weight's summed dims and its column dims: [..., K, N]."""
    summed = 1
    for n in w.shape[batch_dims : batch_dims + spec.contract_dims]:
        summed *= n
    return w.reshape(*w.shape[:batch_dims], summed, -1)


def value(w: Array | Weight) -> Array:
    """A weight as a plain array, for the products that stay high."""
    return w.master if isinstance(w, Weight) else w
