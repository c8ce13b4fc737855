"""Rows of a released tensor as a box of its leaf, and back; FP8 codes and scales of rows."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np

from dsjax.checkpoint.reader import CHUNK
from dsjax.errors import UserError
from dsjax.numerics import scaled
from dsjax.numerics.formats import E4M3
from dsjax.released.names import BLOCK, Placement, scale_shape

FP8, E8M0 = np.dtype(ml_dtypes.float8_e4m3fn), np.dtype(ml_dtypes.float8_e8m0fnu)
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def step(place: Placement, row_bytes: int) -> int:
    """Return how many rows are read at once: whole heads and blocks, about 16 MB."""
    least = math.lcm(place.rows_together, BLOCK)
    return least * max(1, CHUNK // max(1, least * row_bytes))


def to_leaf(place: Placement, rows: np.ndarray, start: int) -> np.ndarray:
    """Return released rows from `start` on as they lie in the leaf, [1 for each of `at`, ...]."""
    if not place.is_transposed:
        return rows.reshape((1,) * len(place.at) + rows.shape)
    box = place.index(start, start + rows.shape[0])
    return transposed(rows).reshape([s.stop - s.start for s in box])


def to_released(place: Placement, values: np.ndarray) -> np.ndarray:
    """Return the released rows that a box of the leaf holds: the inverse of `to_leaf`."""
    if not place.is_transposed:
        return values.reshape(values.shape[len(place.at) :])
    columns = place.shape[1]
    return transposed(values.reshape(columns, -1))


def transposed(rows: np.ndarray) -> np.ndarray:
    """Return a matrix transposed and contiguous; as plain integers, which NumPy copies faster."""
    bits = rows.view({1: np.uint8, 2: np.uint16, 4: np.uint32}[rows.dtype.itemsize])
    out = np.empty(bits.shape[::-1], bits.dtype)
    height, width = 64, 128  # a tile of both matrices stays in the innermost cache
    for i in range(0, bits.shape[0], height):
        for j in range(0, bits.shape[1], width):
            out[j : j + width, i : i + height] = bits[i : i + height, j : j + width].T
    return out.view(rows.dtype)


def quantize(rows: np.ndarray, is_ue8m0: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return FP8 codes and float32 scales of released rows [n, m] that begin with a block.

    `scaled.quantize` with 128x128 tiles, bit for bit, and without a compiler: shapes here are many.
    """
    x = rows.astype(np.float32)
    n, m = scale_shape(x.shape)
    padded = np.zeros((n * BLOCK, m * BLOCK), np.float32)
    padded[: x.shape[0], : x.shape[1]] = np.abs(x)
    amax = padded.reshape(n, BLOCK, m, BLOCK).max(axis=(1, 3))
    scales = np.maximum(amax, np.float32(scaled.AMAX_FLOOR)) / np.float32(E4M3.largest)
    if is_ue8m0:
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
