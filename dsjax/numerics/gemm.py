"""The three FP8 products of a Linear (V3 report sec. 3.3, figs. 6 and 7).

    Fprop  y  = x w       x in 1x128 tiles,   w in 128x128 blocks
    Dgrad  dx = dy w^T    dy in 1x128 tiles,  w as held for Fprop
    Wgrad  dw = x^T dy    both in 128x1 tiles

x waits for the backward pass as its 1x128 codes; Wgrad requantizes from those. dy is quantized
twice, once for each of its products. Weights are quantized once an optimizer step. All operands are
E4M3. Each partial sum over 128 of K is scaled by its two scales and added in float32.

Which scales: the report has float32 scales, and powers of two where a tensor is quantized more than
once (the projection after attention, the experts' input); V3.1 has powers of two everywhere
(UE8M0). `V3_1` is the default here: exact to apply, and on a CPU the whole product is then one
bfloat16 product. `V3` is the report's.

A machine without FP8 products multiplies what the codes stand for: with power-of-two scales these
are bfloat16 numbers (4 significant bits, or 7 of E5M6, times 2^n), whose products are exact in
float32; with float scales they are float32. Both leave only the order of the float32 sum open.

Axes: M rows (tokens), K summed channels, N columns; leading dims (experts) are batched.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp
from flax import struct
from jax import Array, lax

from dsjax.numerics import scaled
from dsjax.numerics.formats import E4M3, E5M6, UE8M0, Format
from dsjax.numerics.products import Products, contract
from dsjax.numerics.scaled import Scaled

Tile = tuple[int, int]
Multiply = Callable[[Scaled, Scaled, int, int], Array]
"""a, b, the dim each sums over counted from the end -> float32; leading dims batched."""


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What FP8 training holds how. The defaults are V3.1's; ablations change one thing each."""

    name: str = "fp8"
    pow2: bool = True
    input_tile: Tile = (1, 128)
    weight_tile: Tile = (128, 128)
    grad_tile: Tile = (1, 128)
    turned_tile: Tile = (128, 1)  # of both operands of Wgrad
    grad_format: Format = E4M3


V3_1 = Recipe()
V3 = Recipe(name="fp8_v3", pow2=False)


@struct.dataclass
class Grad:
    """An output gradient, quantized once for each product that reads it."""

    by_row: Scaled  # 1x128, for Dgrad
    by_column: Scaled  # 128x1, for Wgrad


def products(recipe: Recipe = V3_1, multiply: Multiply | None = None) -> Products:
    """The FP8 products of a recipe; `multiply` is `emulated` unless a machine's own is given."""
    multiply = multiply or emulated
    base = _products(recipe, multiply, recipe.pow2, E4M3)
    return dataclasses.replace(base, after_attention=_products(recipe, multiply, True, E5M6))


def _products(recipe: Recipe, multiply: Multiply, pow2: bool, held: Format) -> Products:
    """Products whose input is held in one format, with scales of one kind."""

    def hold_input(x: Array) -> Scaled:
        return scaled.quantize(x, recipe.input_tile, pow2, held)

    def hold_weight(w: Array, parts: int = 1) -> Scaled:
        rows, columns = recipe.weight_tile
        if parts == 1:
            return scaled.quantize(w, (rows, columns), recipe.pow2)
        apart = w.reshape(*w.shape[:-1], parts, -1)
        return scaled.quantize(apart, (rows, 1, columns), recipe.pow2)

    def hold_grad(dy: Array) -> Grad:
        return Grad(scaled.quantize(dy, recipe.grad_tile, pow2, recipe.grad_format),
                    scaled.quantize(dy, recipe.turned_tile, pow2, recipe.grad_format))

    def fprop(x: Scaled, w: Scaled) -> Array:
        if held is not E4M3:
            x = scaled.requantize(x, recipe.input_tile, pow2)
        return multiply(x, w, 1, 2)

    def wgrad(x: Scaled, grad: Grad) -> Array:
        turned = scaled.requantize(x, recipe.turned_tile, pow2)
        return multiply(turned, grad.by_column, 2, 2)

    return Products(
        name=recipe.name,
        hold_input=hold_input,
        hold_weight=hold_weight,
        hold_grad=hold_grad,
        fprop=fprop,
        dgrad=lambda grad, w: multiply(grad.by_row, w, 1, 1),
        wgrad=wgrad,
        keep=lambda x: scaled.quantize(x, recipe.input_tile, pow2),
        read=lambda q, dtype: scaled.dequantize(q, dtype),
    )


def emulated(a: Scaled, b: Scaled, sum_a: int, sum_b: int) -> Array:
    """Multiply what the codes stand for, exactly, with float32 sums."""
    is_exact = a.scales.dtype == UE8M0 and b.scales.dtype == UE8M0
    dtype = jnp.bfloat16 if is_exact else jnp.float32
    return contract(_matrix(a, dtype), _matrix(b, dtype), sum_a, sum_b, lax.Precision.HIGHEST)


def _matrix(q: Scaled, dtype: jnp.dtype | type) -> Array:
    """The value of an operand; parts that were tiled apart are put side by side again."""
    value = scaled.dequantize(q, dtype)
    return value if len(q.tile) == 2 else value.reshape(*value.shape[:-2], -1)


FP8 = products(V3_1)
