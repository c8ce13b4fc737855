"""The three FP8 products of a Linear (V3 report sec. 3.3, figs. 6 and 7).

    Fprop  y  = x w       x in 1x128 tiles,   w in 128x128 blocks
    Dgrad  dx = dy w^T    dy in 1x128 tiles,  w as quantized for Fprop
    Wgrad  dw = x^T dy    both in 128x1 tiles

x waits for the backward pass as its 1x128 codes; Wgrad requantizes from those. dy is quantized
twice, once for each of its products. Weights are quantized once an optimizer step. All operands are
E4M3. Each partial sum over 128 of K is scaled by its two scales and added in float32.

Scales: the report has float32 scales, and powers of two where a tensor is quantized more than
once (the projection after attention, the experts' input); V3.1 has powers of two everywhere
(UE8M0). `V3_1` is the default here: exact to apply, and on a CPU the whole product is then one
bfloat16 product. `V3` is the report's, but for the experts' input: that has powers of two where it
travels between devices (dsjax.parallel.exchange), as float32 scales are what its products read.

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
from jax.typing import DTypeLike

from dsjax.numerics import scaled
from dsjax.numerics.formats import E4M3, E5M6, UE8M0, Format
from dsjax.numerics.precision import BF16, Operand, Precision, contract, decoded
from dsjax.numerics.scaled import Scaled
from dsjax.numerics.wire import FP8_WIRE

Tile = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Tiles, formats and scales of FP8 training: V3.1's, of which ablations change one each."""

    name: str = "fp8"
    ue8m0: bool = True
    input_tile: Tile = (1, 128)
    weight_tile: Tile = (128, 128)
    grad_tile: Tile = (1, 128)
    turned_tile: Tile = (128, 1)  # of both operands of Wgrad
    grad_format: Format = E4M3


V3_1 = Recipe()
V3 = Recipe(name="fp8_v3", ue8m0=False)


@dataclasses.dataclass(frozen=True)
class MatmulImpl:
    """One machine's way to quantize an operand that is used at once, and to multiply two."""

    quantize: Callable[[Array, Tile, bool, Format], Operand]
    multiply: Callable[[Operand, Operand, int, int], Array]
    """a, b, the dim each sums over counted from the end -> float32; leading dims batched."""
    from_codes: Callable[[Scaled], Operand] = lambda q: decoded(q, value_dtype(q))
    """Operand of a weight that rests as codes."""
    reference: MatmulImpl | None = None
    """The same for operands that XLA has cut over a mesh, where `multiply` is of one device's."""


@struct.dataclass
class Grad:
    """An output gradient, quantized once for each product that reads it."""

    by_row: Operand  # 1x128, for Dgrad
    by_column: Operand  # 128x1, for Wgrad


def precision(recipe: Recipe = V3_1, impl: MatmulImpl | None = None) -> Precision:
    """The FP8 products of a recipe, on a machine without FP8 unless another is given."""
    impl = impl or EMULATED
    base, last = (_precision(recipe, impl, *form)
                  for form in ((recipe.ue8m0, E4M3), (True, E5M6)))
    if impl.reference is not None:
        reference = precision(recipe, impl.reference)
        base = dataclasses.replace(base, reference=reference)
        last = dataclasses.replace(last, reference=reference.o_proj)
    return dataclasses.replace(base, o_proj=last)


def _precision(recipe: Recipe, impl: MatmulImpl, ue8m0: bool, kept: Format) -> Precision:
    """Products whose input waits in one format, with scales of one kind."""

    def quantize_input(x: Array) -> Scaled:
        return scaled.quantize(x, recipe.input_tile, ue8m0, kept)

    def quantize_weight(w: Array, parts: int = 1) -> Operand:
        rows, columns = recipe.weight_tile
        if parts == 1:
            return impl.quantize(w, (rows, columns), recipe.ue8m0, E4M3)
        apart = w.reshape(*w.shape[:-1], parts, -1)
        return impl.quantize(apart, (rows, 1, columns), recipe.ue8m0, E4M3)

    def quantize_grad(dy: Array) -> Grad:
        return Grad(impl.quantize(dy, recipe.grad_tile, ue8m0, recipe.grad_format),
                    impl.quantize(dy, recipe.turned_tile, ue8m0, recipe.grad_format))

    def quantize_for_fprop(x: Array) -> Operand:
        if kept is not E4M3:
            x = scaled.rounded(x, recipe.input_tile, ue8m0, kept)
        return impl.quantize(x, recipe.input_tile, ue8m0, E4M3)

    def quantize_for_wgrad(x: Array) -> Operand:
        return impl.quantize(x, recipe.turned_tile, ue8m0, E4M3)

    def fprop(x: Scaled, w: Scaled) -> Array:
        if isinstance(x, Scaled) and kept is not E4M3:
            x = quantize_for_fprop(scaled.dequantize(x))
        return impl.multiply(x, w, 1, 2)

    def wgrad(x: Operand, grad: Grad) -> Array:
        is_waiting = isinstance(x, Scaled) and x.tile == recipe.input_tile
        turned = quantize_for_wgrad(scaled.dequantize(x)) if is_waiting else x
        return impl.multiply(turned, grad.by_column, 2, 2)

    return Precision(
        name=recipe.name,
        quantize_input=quantize_input,
        quantize_weight=quantize_weight,
        quantize_grad=quantize_grad,
        from_codes=impl.from_codes,
        fprop=fprop,
        dgrad=lambda grad, w: impl.multiply(grad.by_row, w, 1, 1),
        wgrad=wgrad,
        quantize_for_fprop=quantize_for_fprop,
        quantize_for_wgrad=quantize_for_wgrad,
        save=lambda x: scaled.quantize(x, recipe.input_tile, ue8m0),
        restore=operand_value,
        row_tile=recipe.turned_tile[0],
        high=BF16,
        operand_dtype=BF16.operand_dtype,
        casts_weights=True,
        wire=FP8_WIRE,
    )


def _hold_value(x: Array, tile: Tile, ue8m0: bool, into: Format) -> Array:
    """Return the values an operand's codes would stand for; parts tiled apart are joined again."""
    value = scaled.rounded(x, tile, ue8m0, into, jnp.bfloat16 if ue8m0 else jnp.float32)
    return value if len(tile) == 2 else value.reshape(*value.shape[:-2], -1)


def _multiply_values(a: Operand, b: Operand, sum_a: int, sum_b: int) -> Array:
    """Multiply what the codes stand for, exactly, with float32 sums."""
    a, b = operand_value(a), operand_value(b)
    if a.dtype != b.dtype:
        a, b = a.astype(jnp.float32), b.astype(jnp.float32)
    return contract(a, b, sum_a, sum_b, lax.Precision.HIGHEST)


def operand_value(q: Operand) -> Array:
    """The value of an operand, in bfloat16 where that is exact."""
    if not isinstance(q, Scaled):
        return q
    return scaled.dequantize(q, value_dtype(q))


def value_dtype(q: Scaled) -> DTypeLike:
    """The narrower dtype that holds what codes stand for exactly."""
    return jnp.bfloat16 if q.scales.dtype == UE8M0 else jnp.float32


EMULATED = MatmulImpl(_hold_value, _multiply_values)
FP8 = precision(V3_1)
