"""Arrays as 8-bit codes with one scale a tile (V3 report sec. 3.3.2).

    original ~ codes * repeat(scales)

Tiles are 1x128 for activations and gradients (one token, 128 channels), 128x128 for weights and
128x1 for the operands of Wgrad. The scale of a tile is amax / largest, amax the largest magnitude
in the tile and never below 1e-4 (DeepSeek-V3, inference/kernel.py); power-of-two scales are
rounded up from that (UE8M0, V3.1). Tiles at an edge are as small as what is left.

Codes are rounded from x * (1 / scale), DeepGEMM's arithmetic. The released inference kernel
divides, x / scale; TileKernels multiplies by largest / amax. The three agree where the scale is a
power of two, and elsewhere differ in the last code when x / scale lies within a float32 rounding of
the middle between two codes. (XLA turns a division by a broadcast array into this product anyway.)
None is above the largest number by more than float32's rounding, which a code's own takes away, so
nothing saturates here.

NaN stays visible: a tile that holds NaN or infinity has the scale NaN, so all of
it dequantizes to NaN and the optimizer step is skipped. A tile of zeros has zero codes and the
scale of the floor.
"""

from __future__ import annotations

import math

import jax.numpy as jnp
from flax import struct
from jax import Array, lax
from jax.typing import DTypeLike

from dsjax.numerics import formats
from dsjax.numerics.formats import E4M3, UE8M0, Format
from dsjax.params import Spec

AMAX_FLOOR = 1e-4
BLOCK = 128  # rows and columns of a weight's tile
LANES = 8  # float32 of a CPU's register
WHOLE = 1 << 30  # a tile as long as the dim


@struct.dataclass
class Scaled:
    """original ~ codes * repeat(scales); `tile` has one length for each trailing dim."""

    codes: Array  # [..., M, K]
    scales: Array  # [..., ceil(M / tile[-2]), ceil(K / tile[-1])] float32, or powers of two (UE8M0)
    tile: tuple[int, ...] = struct.field(pytree_node=False)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the original."""
        return self.codes.shape


def quantize(x: Array, tile: tuple[int, ...] = (1, 128), ue8m0: bool = False,
             into: Format = E4M3) -> Scaled:
    """Give each tile of x's last dims a scale, and round x / scale into a format.

    x [..., M, K] of any float dtype; leading dims that `tile` does not name are tiled singly.
    """
    if not isinstance(tile, tuple):
        raise TypeError(f"tile={tile!r} is no tuple; give lengths of trailing dims, as in (1, 128)")
    if not 1 <= len(tile) <= x.ndim or min(tile) < 1:
        raise ValueError(f"tile={tile} does not fit x of shape {x.shape}; give a length of at "
                         f"least 1 for each of up to {x.ndim} trailing dims")
    x = x.astype(jnp.float32)
    scales, inverse = scales_of(tile_amax(x, tile), ue8m0, into)
    codes = formats.encode(x * spread(inverse, tile, x.shape), into, saturate=False)
    return Scaled(codes, scales, tile)


def dequantize(q: Scaled, dtype: DTypeLike = jnp.float32) -> Array:
    """codes * repeat(scales) in float32, then rounded to `dtype` if that is another.

    bfloat16 is exact where scales are powers of two.
    """
    scales = spread(scale_values(q.scales), q.tile, q.shape)
    return (formats.decode(q.codes) * scales).astype(dtype)


def rounded(x: Array, tile: tuple[int, ...], ue8m0: bool, into: Format = E4M3,
            dtype: DTypeLike = jnp.float32) -> Array:
    """`dequantize(quantize(x))` without the codes: what is used at once and never kept."""
    x = x.astype(jnp.float32)
    scales, inverse = scales_of(tile_amax(x, tile), ue8m0, into)
    value = formats.rounded(x * spread(inverse, tile, x.shape), into, saturate=False)
    if ue8m0:
        # Exactly the scales, as a division, which XLA makes once a tile; the integers that also
        # give them it would make again for every entry.
        scales = 1.0 / inverse
    value = value * spread(scales, tile, x.shape)
    return formats.to_bfloat16(value) if ue8m0 and dtype == jnp.bfloat16 else value.astype(dtype)


def scale_values(scales: Array) -> Array:
    """Scales as float32."""
    if scales.dtype != UE8M0:
        return scales
    return lax.optimization_barrier(formats.from_power_of_two(scales))


def tile_amax(x: Array, tile: tuple[int, ...]) -> Array:
    """Largest magnitude in each tile: x [..., M, K] float32 -> [..., ceil(M / tm), ceil(K / tk)].

    Compared as integers, which order magnitudes as floats do and NaN above infinity: XLA's float
    maximum on a CPU loses NaN. Eight lanes at a time, as a CPU's registers hold them.
    """
    lengths = _lengths(tile, x.shape)
    first = x.ndim - len(lengths)
    edges = [(0, 0)] * first + [(0, -n % t) for n, t in zip(x.shape[first:], lengths)]
    if any(after for _, after in edges):
        x = jnp.pad(x, edges)  # zeros are no tile's largest magnitude
    cut = [part for n, t in zip(x.shape[first:], lengths) for part in (n // t, t)]
    lanes = LANES if cut[-1] % LANES == 0 else 1
    cut[-1:] = [cut[-1] // lanes, lanes]
    inside = tuple(range(first + 1, first + len(cut) - 1, 2))
    bits = lax.bitcast_convert_type(jnp.abs(x), jnp.int32).reshape(*x.shape[:first], *cut)
    return lax.bitcast_convert_type(bits.max(axis=inside).max(axis=-1), jnp.float32)


def scales_of(amax: Array, ue8m0: bool, into: Format) -> tuple[Array, Array]:
    """Scales as kept, and 1 / scale in float32, both of amax's shape."""
    amax = jnp.where(jnp.isfinite(amax), jnp.maximum(amax, AMAX_FLOOR), jnp.nan)
    # XLA would turn amax / 448 into amax * (1 / 448), and 1 / (amax / 448) into 448 / amax; both
    # round otherwise than what is written. Made of amax (NaN stays NaN), for under vmap a constant
    # would be one number again behind the barrier.
    largest = lax.optimization_barrier(amax * 0 + jnp.float32(into.largest))
    scale = lax.optimization_barrier(amax / largest)
    if not ue8m0:
        return scale, 1.0 / scale
    codes = formats.to_power_of_two(scale)
    # Scales are few: make them once, not again for every entry of the tile.
    return codes, lax.optimization_barrier(1.0 / formats.from_power_of_two(codes))


def spread(by_tile: Array, tile: tuple[int, ...], shape: tuple[int, ...]) -> Array:
    """Repeat one number a tile over the tile's entries, up to `shape`."""
    first = len(shape) - len(tile)
    lengths = _lengths(tile, shape)
    cut = [p for n in by_tile.shape[first:] for p in (n, 1)]
    full = [p for n, t in zip(by_tile.shape[first:], lengths) for p in (n, t)]
    whole = [n * t for n, t in zip(by_tile.shape[first:], lengths)]
    head = by_tile.shape[:first]
    out = jnp.broadcast_to(by_tile.reshape(*head, *cut), (*head, *full)).reshape(*head, *whole)
    if out.shape == shape:
        return out
    return lax.slice(out, (0,) * len(shape), shape)


def _lengths(tile: tuple[int, ...], shape: tuple[int, ...]) -> list[int]:
    """Tile lengths, none longer than its dim."""
    return [max(1, min(t, n)) for t, n in zip(tile, shape[len(shape) - len(tile) :])]


def resting_shapes(spec: Spec) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Shapes of the codes and scales of a matrix that rests in 8 bits, and its tile.

    A matrix is [..., K, N] in tiles of 128x128; one of `parts` matrices side by side keeps a dim
    for them, [..., K, parts, N], so that no tile spans two.
    """
    batch, rest = spec.shape[: spec.batch_dims], spec.shape[spec.batch_dims :]
    if spec.parts > 1:
        tile: tuple[int, ...] = (BLOCK, 1, BLOCK)
    else:
        tile = (BLOCK, BLOCK)
        split = spec.contract_dims
        rest = (math.prod(rest[:split]), math.prod(rest[split:]))
    scales = tuple(-(-n // t) for n, t in zip(rest, tile))
    return (*batch, *rest), (*batch, *scales), tile
