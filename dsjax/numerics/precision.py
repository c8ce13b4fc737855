"""The three products of a Linear, and their operands in each precision (V3 report sec. 3.3).

A product is Fprop `y = x w`, Dgrad `dx = dy w^T` and Wgrad `dw = x^T dy`. A precision says how the
operands are quantized; each of the three reads quantized operands and returns float32 sums:

    float32    operands as they are (`tf32`: multiplied as the machine is fastest)
    bfloat16   operands rounded to bfloat16, exact products, float32 sums
    FP8        operands as 8-bit codes with a scale a tile (gemm.py), float32 sums

Layers never ask. They call `linear` or an expert product with a weight that is a plain array or a
`Weight`: the float32 master, which receives the gradient, beside the form that products read,
made once per optimizer step (`quantize_weights`, `attach`), not once per microbatch. Released FP8
weights may stay as they are, a `Scaled` in either place: products use the dequantized values,
gradients flow through to the input, and the quantized weight has none.

Axes: M rows (tokens), K summed channels, N columns; E leads where experts are batched.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array, lax
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike

from dsjax import params
from dsjax.numerics import scaled
from dsjax.numerics.layout import row_major
from dsjax.numerics.scaled import Scaled
from dsjax.numerics.wide import exact, wide
from dsjax.numerics.wire import BF16_WIRE, EXACT_WIRE, WireFormat

Operand = Any  # an operand as a precision keeps it: an array, or codes with scales


def _same(x: Any) -> Any:
    return x


@dataclasses.dataclass(frozen=True)
class Precision:
    """One precision: how operands are quantized and multiplied. Arrays [..., M, K] or [..., K, N].

    Leading dims of all operands are equal and batched (experts), or absent. `fprop`, `dgrad` and
    `wgrad` read what `quantize_input`, `quantize_weight` and `quantize_grad` made, in float32.
    """

    name: str
    quantize_input: Callable[[Array], Operand]
    quantize_weight: Callable[..., Operand]  # of a matrix made of `parts` (default 1) side by side
    quantize_grad: Callable[[Array], Operand]
    fprop: Callable[[Operand, Operand], Array]
    dgrad: Callable[[Operand, Operand], Array]
    wgrad: Callable[[Operand, Operand], Array]
    from_codes: Callable[[Scaled], Operand]  # of a weight that rests in 8 bits
    quantize_for_fprop: Callable[[Array], Operand] = _same  # for fprop alone
    quantize_for_wgrad: Callable[[Array], Operand] = _same  # an input for wgrad alone
    save: Callable[[Array], Operand] = _same  # an activation for the backward pass
    restore: Callable[[Operand], Array] = _same  # it, or a quantized input, there
    o_proj: Precision | None = None  # of the projection after attention, where it differs
    high: Precision | None = None  # of matrices that stay out of 8 bits, where it differs
    operand_dtype: jnp.dtype | None = None  # what attention and the head multiply; None: as it is
    casts_weights: bool = False  # whether weights are quantized once a step, beside the masters
    rounds_weights: bool = False  # whether that is only to round them to `operand_dtype`
    wire: WireFormat = EXACT_WIRE  # how tokens travel to their experts' devices and back
    row_tile: int = 1  # rows of one scale, in the operands of `wgrad`
    reference: Precision | None = None  # for XLA to cut, where these are of one device's arrays


@struct.dataclass
class Weight:
    """A matrix inside a step: `quantized` is multiplied, `master` receives the gradient."""

    master: Array | Scaled
    quantized: Operand


Matrix = Array | Weight | Scaled
"""A matrix as a layer gets it."""


def contract(a: Array, b: Array, sum_a: int, sum_b: int,
             precision: lax.Precision | None = None) -> Array:
    """Sum over one dim of each (counted from the end), leading dims batched, wide sums out.

    precision: by default that of `exact`.
    """
    is_narrow = a.dtype != wide(a.dtype)
    if is_narrow and sum_a == 2:
        a, sum_a = row_major(a.swapaxes(-1, -2)), 1
    batch = tuple(range(a.ndim - 2))
    dims = (((a.ndim - sum_a,), (b.ndim - sum_b,)), (batch, batch))
    precision = exact(a.dtype) if precision is None else precision
    y = lax.dot_general(a, b, dims, precision, preferred_element_type=wide(a.dtype))
    return row_major(y) if is_narrow else y


def plain_precision(name: str, dtype: jnp.dtype,
                    asked: lax.Precision | None = None) -> Precision:
    """Products whose operands are arrays of one dtype and whose sums are float32.

    asked: of XLA; None is `wide.exact`.
    """

    def cast(x: Array, parts: int = 1) -> Array:
        return x.astype(dtype)

    is_narrow = wide(dtype) != dtype
    return Precision(
        name=name,
        quantize_input=cast,
        quantize_weight=cast,
        quantize_grad=cast,
        fprop=lambda x, w: contract(x, w, 1, 2, asked),
        dgrad=lambda dy, w: contract(dy, w, 1, 1, asked),
        wgrad=lambda x, dy: contract(x, dy, 2, 2, asked),
        from_codes=lambda q: decoded(q, dtype),
        quantize_for_fprop=cast,
        quantize_for_wgrad=cast,
        operand_dtype=dtype if is_narrow else None,
        casts_weights=is_narrow,
        rounds_weights=is_narrow,
        wire=BF16_WIRE if is_narrow else EXACT_WIRE,
    )


FP32 = plain_precision("fp32", jnp.dtype(jnp.float32))
TF32 = plain_precision("tf32", jnp.dtype(jnp.float32), lax.Precision.DEFAULT)
"""Products of Linears as fast as a machine multiplies float32 operands: TF32 on a GPU, a pass of
bfloat16 on a TPU, float32 on a CPU. Attention, router and head stay float32."""
BF16 = plain_precision("bf16", jnp.dtype(jnp.bfloat16))


def quantize_weights(tree: params.Tree, specs: params.Tree, precision: Precision) -> params.Tree:
    """Make, once a step, the form that products read of every product matrix; None elsewhere.

    Quantized matrices are [..., K, N]: dims that a product sums over are merged, so are columns.
    A `Weight` has its form already.
    """

    def make(spec: params.Spec, leaf: Matrix) -> Operand:
        if not spec.is_product:
            return None
        if isinstance(leaf, Weight):
            return leaf.quantized
        if isinstance(leaf, Scaled):
            return precision.from_codes(leaf)
        return precision.quantize_weight(as_matrix(leaf, spec), spec.parts)

    return jax.tree.map(make, specs, tree, is_leaf=params.is_spec)


def attach(tree: params.Tree, quantized: params.Tree, specs: params.Tree) -> params.Tree:
    """Set each quantized form beside its float32 master, as a Weight; other leaves stay arrays."""

    def join(spec: params.Spec, leaf: Matrix, form: Operand) -> Matrix:
        master = leaf.master if isinstance(leaf, Weight) else leaf
        return Weight(master, form) if spec.is_product else leaf

    return jax.tree.map(join, specs, tree, quantized, is_leaf=params.is_spec)


def one_copy(tree: params.Tree, specs: params.Tree, precision: Precision, dtype: DTypeLike,
             is_consumed: bool = False) -> params.Tree:
    """Round product matrices to what is multiplied, without their masters: there is no gradient.

    Only a matrix of attention keeps its master where activations are of a wide `dtype`: the
    absorbed form reads it as it is. Twice is as once. Consumed masters are deleted one by one.
    """
    assert precision.rounds_weights, "what is multiplied is the weights, rounded"
    is_wide = wide(jnp.dtype(dtype)) == jnp.dtype(dtype)

    def rounded(spec: params.Spec, leaf: Matrix) -> Matrix:
        if isinstance(leaf, Scaled):
            return Weight(leaf, precision.from_codes(leaf)) if spec.is_product else leaf
        if not spec.is_product or isinstance(leaf, Weight):
            return leaf
        if is_wide and spec.role == "attention":
            return Weight(leaf, precision.quantize_weight(as_matrix(leaf, spec), spec.parts))
        if leaf.dtype == precision.operand_dtype:
            return leaf
        made = leaf.astype(precision.operand_dtype)
        if is_consumed:
            jax.block_until_ready(made)
            leaf.delete()
        return made

    return jax.tree.map(rounded, specs, tree, is_leaf=params.is_spec)


def as_matrix(w: Array, spec: params.Spec) -> Array:
    """Merge a weight's summed dims and its column dims: [..., K, N]."""
    split = spec.batch_dims + spec.contract_dims
    return w.reshape(*w.shape[: spec.batch_dims], math.prod(w.shape[spec.batch_dims : split]), -1)


def name(operand: Operand, label: str) -> Operand:
    """Name what waits for the backward pass, so that a remat policy may keep it.

    8-bit arrays are named as bytes: `jax.checkpoint` passes floating-point residuals through
    `reduce_precision`, which takes E4M3 for an IEEE format and makes its upper half infinite.
    """

    def one(a: Array) -> Array:
        if a.dtype.itemsize > 1:
            return checkpoint_name(a, label)
        codes = checkpoint_name(lax.bitcast_convert_type(a, jnp.uint8), label)
        return lax.bitcast_convert_type(codes, a.dtype)

    return jax.tree.map(one, operand)


def value(w: Matrix) -> Array:
    """A weight as a plain array, for the products that stay high; a Scaled as [..., K, N]."""
    master = w.master if isinstance(w, Weight) else w
    return decoded(master, jnp.float32) if isinstance(master, Scaled) else master


def as_bits(q: Scaled) -> Scaled:
    """Codes as unsigned integers of the same bits, for a scan over layers: a CPU's compiler has no
    slice of narrow floats, so that taking a layer would first widen all. Bits stay."""
    if q.codes.dtype == jnp.uint8:
        return q
    return Scaled(lax.bitcast_convert_type(q.codes, jnp.uint8), q.scales, q.tile)


def coded(q: Scaled) -> Scaled:
    """The inverse of `as_bits`; codes that are numbers stay."""
    if q.codes.dtype != jnp.uint8:
        return q
    return Scaled(lax.bitcast_convert_type(q.codes, jnp.float8_e4m3fn), q.scales, q.tile)


def decoded(q: Scaled, dtype: DTypeLike) -> Array:
    """Dequantize codes, rounded to a dtype; matrices tiled apart are side by side again."""
    a = scaled.dequantize(coded(q), dtype)
    return a if len(q.tile) == 2 else a.reshape(*a.shape[:-2], -1)


def weight_of(w: Matrix, precision: Precision, batch_dims: int, contract_dims: int,
              parts: int = 1) -> tuple[Array, Operand]:
    """Return a weight's master [..., K, N], which a gradient goes to, and its quantized operand.

    A Scaled has no gradient, nor has an array of narrow numbers, as masters are float32: zeros that
    nothing reads stand for its master.
    """
    master = w.master if isinstance(w, Weight) else w
    if isinstance(master, Scaled):
        operand = w.quantized if isinstance(w, Weight) else precision.from_codes(coded(master))
        rows = master.shape[: batch_dims + 1]
        return jnp.zeros((*rows, math.prod(master.shape[batch_dims + 1 :]))), operand
    split = batch_dims + contract_dims
    flat = master.reshape(*master.shape[:batch_dims],
                          math.prod(master.shape[batch_dims:split]), -1)
    if isinstance(w, Weight):
        return flat, w.quantized
    if wide(flat.dtype) != flat.dtype:
        return jnp.zeros(flat.shape), precision.quantize_weight(flat, parts)
    return flat, precision.quantize_weight(lax.stop_gradient(flat), parts)
