"""Rows as they look while they travel between devices (V3 report sec. 3.3.3).

Tokens go to their experts, and gradients of the experts' outputs with them, as E4M3 in 1x128 tiles
with power-of-two scales; sums come back in bfloat16. In float32 all travels as it is, exactly.

Axes: R rows, D model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import Array, lax
from jax.typing import DTypeLike

from dsjax.numerics import scaled
from dsjax.numerics.formats import E4M3, UE8M0
from dsjax.numerics.scaled import Scaled

Parcel = Any  # a tree of arrays that lead with rows


@dataclasses.dataclass(frozen=True)
class RowFormat:
    """Format of rows while they travel: x [R, D] -> arrays that lead with R -> [R, D]."""

    name: str
    pack: Callable[[Array], Parcel]
    unpack: Callable[[Parcel, DTypeLike], Array]
    row_bytes: Callable[[int, int], int]
    """Bytes of a row of D numbers of `itemsize` bytes each."""


@dataclasses.dataclass(frozen=True)
class WireFormat:
    """Formats of what goes out to be worked on, and of the sums that come back."""

    out: RowFormat
    back: RowFormat


def _pack_fp8(x: Array) -> tuple[Array, Array]:
    """Codes and scales as bytes: collectives need not know 8-bit floats."""
    q = scaled.quantize(x, (1, 128), ue8m0=True)
    return (lax.bitcast_convert_type(q.codes, jnp.uint8),
            lax.bitcast_convert_type(q.scales, jnp.uint8))


def _unpack_fp8(parcel: tuple[Array, Array], dtype: DTypeLike) -> Array:
    codes, scales = parcel
    q = Scaled(lax.bitcast_convert_type(codes, E4M3.dtype),
               lax.bitcast_convert_type(scales, UE8M0), (1, 128))
    return scaled.dequantize(q, dtype)


EXACT = RowFormat("as they are", lambda x: x, lambda x, dtype: x.astype(dtype),
                  lambda d, itemsize: d * itemsize)
BFLOAT16 = RowFormat("bfloat16", lambda x: x.astype(jnp.bfloat16),
                     lambda x, dtype: x.astype(dtype), lambda d, itemsize: 2 * d)
FP8 = RowFormat("E4M3 with a scale in 128", _pack_fp8, _unpack_fp8,
                lambda d, itemsize: d + -(-d // 128))

EXACT_WIRE = WireFormat(EXACT, EXACT)
BF16_WIRE = WireFormat(BFLOAT16, BFLOAT16)
FP8_WIRE = WireFormat(FP8, BFLOAT16)
