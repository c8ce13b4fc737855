"""Tensors in pieces of rows, each turned from its released form into its place and back.

A piece is a run of released rows that is whole in both forms: a multiple of a head's channels and
of the 128 rows of an FP8 block, and about 16 MB. Whatever a tensor's size, a few pieces are all
that is in memory.

FP8 is read as the official code reads it (DeepSeek-V3, inference/kernel.py, weight_dequant):
float32(code) * scale of its 128x128 block, where blocks at an edge are as small as what is left;
rounded once more if another dtype than float32 is asked for. It is written as
`scaled.quantize` makes it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import ml_dtypes
import numpy as np

from dsjax.errors import UserError
from dsjax.numerics import scaled
from dsjax.numerics.formats import E4M3
from dsjax.released.files import Tensor
from dsjax.released.names import BLOCK, Placement, scale_shape

PIECE = 16 << 20
FP8, E8M0 = np.dtype(ml_dtypes.float8_e4m3fn), np.dtype(ml_dtypes.float8_e8m0fnu)
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def dtype_of(name: str) -> np.dtype:
    """The dtype a manifest names, 8-bit ones included."""
    return np.dtype(getattr(ml_dtypes, name, name))


@dataclass(frozen=True)
class Source:
    """A released tensor, its scales if it is FP8 and to be dequantized, and where it goes."""

    place: Placement
    tensor: Tensor
    scales: Tensor | None
    dtype: np.dtype  # it gets in the leaf


def spans(place: Placement, row_bytes: int) -> Iterator[tuple[int, int]]:
    """First and last row (exclusive) of each piece of a tensor."""
    rows = place.shape[0]
    step = math.lcm(place.rows_together, BLOCK)
    step *= max(1, PIECE // max(1, step * row_bytes))
    for start in range(0, rows, step):
        yield start, min(start + step, rows)


def read(source: Source, start: int, stop: int) -> np.ndarray:
    """Rows start..stop as they lie in the leaf, [1 for each stacked dim, ...]."""
    place, tensor = source.place, source.tensor
    rows = tensor.rows(start, stop)
    refuse_nan(rows, f"{tensor.file}: {tensor.name}")
    if source.scales is not None:
        scales = source.scales.rows(start // BLOCK, -(-stop // BLOCK))
        refuse_nan(scales, f"{tensor.file}: {source.scales.name}")
        rows = dequantize(rows, scales)
    if rows.dtype != source.dtype:
        rows = rows.astype(np.float32).astype(source.dtype)
    if not place.is_turned:
        return rows.reshape((1,) * len(place.at) + rows.shape)
    shape = [s.stop - s.start for s in place.index(start, stop)]
    return turn(rows).reshape(shape)


def released(place: Placement, values: np.ndarray) -> np.ndarray:
    """The inverse of a piece's turn: values as they lie in the leaf, as released rows."""
    if not place.is_turned:
        return values.reshape(values.shape[len(place.at) :])
    columns = place.shape[1]
    return turn(values.reshape(columns, -1))


def turn(rows: np.ndarray) -> np.ndarray:
    """A matrix transposed and contiguous; as plain integers, which NumPy copies faster."""
    bits = rows.view({1: np.uint8, 2: np.uint16, 4: np.uint32}[rows.dtype.itemsize])
    out = np.empty(bits.shape[::-1], bits.dtype)
    width = 64  # a strip of both matrices stays in the cache
    for start in range(0, bits.shape[1], width):
        out[start : start + width] = bits[:, start : start + width].T
    return out.view(rows.dtype)


def dequantize(codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """float32(codes) * the scale of each 128x128 block. codes [n, m], scales one a block."""
    out = codes.astype(np.float32)
    factors = scales.astype(np.float32)
    for i in range(factors.shape[0]):
        rows = slice(i * BLOCK, (i + 1) * BLOCK)
        out[rows] *= np.repeat(factors[i], BLOCK)[None, : out.shape[1]]
    return out


def quantize(rows: np.ndarray, is_pow2: bool) -> tuple[np.ndarray, np.ndarray]:
    """FP8 codes and float32 scales of released rows [n, m] that begin with a block.

    The twin of `scaled.quantize` with 128x128 tiles, bit for bit, and without a compiler: shapes
    here are many.
    """
    x = rows.astype(np.float32)
    n, m = scale_shape(x.shape)
    padded = np.zeros((n * BLOCK, m * BLOCK), np.float32)
    padded[: x.shape[0], : x.shape[1]] = np.abs(x)
    amax = padded.reshape(n, BLOCK, m, BLOCK).max(axis=(1, 3))
    scales = np.maximum(amax, np.float32(scaled.AMAX_FLOOR)) / np.float32(E4M3.largest)
    if is_pow2:
        fraction, exponent = np.frexp(scales)
        scales = np.ldexp(np.float32(1), exponent - (fraction == 0.5)).astype(np.float32)
    inverse = np.float32(1) / scales
    for i in range(n):
        x[i * BLOCK : (i + 1) * BLOCK] *= np.repeat(inverse[i], BLOCK)[None, : x.shape[1]]
    codes = np.clip(x, -E4M3.largest, E4M3.largest, out=x).astype(FP8)
    return codes, scales


def refuse_nan(rows: np.ndarray, where: str) -> None:
    """Refuse NaN and infinity; `where` names the tensor."""
    if rows.dtype == FP8:
        is_bad = (rows.view(np.uint8) & 0x7F) == 0x7F
    elif rows.dtype == E8M0:
        is_bad = rows.view(np.uint8) == 0xFF
    elif rows.dtype == BFLOAT16:
        is_bad = (rows.view(np.uint16) & 0x7F80) == 0x7F80
    else:
        is_bad = ~np.isfinite(rows)
    if is_bad.any():
        raise UserError(
            f"{where} holds {int(is_bad.sum())} numbers that are not finite; "
            "the weights are broken, download or train them again"
        )
