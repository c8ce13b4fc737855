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
from dsjax.numerics.precision import Held, Products, contract, decoded
from dsjax.numerics.scaled import Scaled

Tile = tuple[int, ...]


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


@dataclasses.dataclass(frozen=True)
class Machine:
    """How a machine holds an operand that is used at once, and multiplies two."""

    hold: Callable[[Array, Tile, bool, Format], Held]
    multiply: Callable[[Held, Held, int, int], Array]
    """a, b, the dim each sums over counted from the end -> float32; leading dims batched."""
    codes: Callable[[Scaled], Held] = lambda q: decoded(q, value_dtype(q))
    """Hold a weight that rests as codes."""
    twin: Machine | None = None
    """The same for operands that XLA has cut over a mesh, where `multiply` is of one device's."""


@struct.dataclass
class Grad:
    """An output gradient, quantized once for each product that reads it."""

    by_row: Held  # 1x128, for Dgrad
    by_column: Held  # 128x1, for Wgrad


def products(recipe: Recipe = V3_1, machine: Machine | None = None) -> Products:
    """The FP8 products of a recipe, on a machine without FP8 unless another is given."""
    machine = machine or EMULATED
    base, last = (_products(recipe, machine, *form)
                  for form in ((recipe.pow2, E4M3), (True, E5M6)))
    if machine.twin is not None:
        twin = products(recipe, machine.twin)
        base = dataclasses.replace(base, twin=twin)
        last = dataclasses.replace(last, twin=twin.after_attention)
    return dataclasses.replace(base, after_attention=last)


def _products(recipe: Recipe, machine: Machine, pow2: bool, kept: Format) -> Products:
    """Products whose input waits in one format, with scales of one kind."""

    def hold_input(x: Array) -> Scaled:
        return scaled.quantize(x, recipe.input_tile, pow2, kept)

    def hold_weight(w: Array, parts: int = 1) -> Held:
        rows, columns = recipe.weight_tile
        if parts == 1:
            return machine.hold(w, (rows, columns), recipe.pow2, E4M3)
        apart = w.reshape(*w.shape[:-1], parts, -1)
        return machine.hold(apart, (rows, 1, columns), recipe.pow2, E4M3)

    def hold_grad(dy: Array) -> Grad:
        return Grad(machine.hold(dy, recipe.grad_tile, pow2, recipe.grad_format),
                    machine.hold(dy, recipe.turned_tile, pow2, recipe.grad_format))

    def hold_once(x: Array) -> Held:
        if kept is not E4M3:
            x = scaled.rounded(x, recipe.input_tile, pow2, kept)
        return machine.hold(x, recipe.input_tile, pow2, E4M3)

    def hold_turned(x: Array) -> Held:
        return machine.hold(x, recipe.turned_tile, pow2, E4M3)

    def fprop(x: Scaled, w: Scaled) -> Array:
        if isinstance(x, Scaled) and kept is not E4M3:
            x = hold_once(scaled.dequantize(x))
        return machine.multiply(x, w, 1, 2)

    def wgrad(x: Held, grad: Grad) -> Array:
        is_waiting = isinstance(x, Scaled) and x.tile == recipe.input_tile
        turned = hold_turned(scaled.dequantize(x)) if is_waiting else x
        return machine.multiply(turned, grad.by_column, 2, 2)

    return Products(
        name=recipe.name,
        hold_input=hold_input,
        hold_weight=hold_weight,
        hold_grad=hold_grad,
        hold_codes=machine.codes,
        fprop=fprop,
        dgrad=lambda grad, w: machine.multiply(grad.by_row, w, 1, 1),
        wgrad=wgrad,
        hold_once=hold_once,
        hold_turned=hold_turned,
        keep=lambda x: scaled.quantize(x, recipe.input_tile, pow2),
        read=operand_value,
        row_tile=recipe.turned_tile[0],
    )


def _hold_value(x: Array, tile: Tile, pow2: bool, into: Format) -> Array:
    """What an operand's codes would stand for; parts tiled apart are side by side again."""
    value = scaled.rounded(x, tile, pow2, into, jnp.bfloat16 if pow2 else jnp.float32)
    return value if len(tile) == 2 else value.reshape(*value.shape[:-2], -1)


def _multiply_values(a: Held, b: Held, sum_a: int, sum_b: int) -> Array:
    """Multiply what the codes stand for, exactly, with float32 sums."""
    a, b = operand_value(a), operand_value(b)
    if a.dtype != b.dtype:
        a, b = a.astype(jnp.float32), b.astype(jnp.float32)
    return contract(a, b, sum_a, sum_b, lax.Precision.HIGHEST)


def operand_value(q: Held) -> Array:
    """The value of an operand, in bfloat16 where that is exact."""
    if not isinstance(q, Scaled):
        return q
    return scaled.dequantize(q, value_dtype(q))


def value_dtype(q: Scaled) -> DTypeLike:
    """The narrower dtype that holds what codes stand for exactly."""
    return jnp.bfloat16 if q.scales.dtype == UE8M0 else jnp.float32


EMULATED = Machine(_hold_value, _multiply_values)
FP8 = products(V3_1)
