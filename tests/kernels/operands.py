"""Operands whose products are exact in any order of sums, and the products' definition."""

import jax.numpy as jnp
import numpy as np

from dsjax.numerics.formats import E4M3, UE8M0
from dsjax.numerics.scaled import Scaled

FPROP, DGRAD, WGRAD = (1, 2), (1, 1), (2, 2)  # the dims that a product sums over, from the end


def quantized(seed, tile, *shape, dtype=E4M3.dtype):
    """Codes from -8 to 8 with scales from 1/4 to 4."""
    rng = np.random.default_rng(seed)
    first = len(shape) - len(tile)
    tiles = [-(-n // t) for n, t in zip(shape[first:], tile)]
    scales = np.exp2(rng.integers(-2, 3, (*shape[:first], *tiles)))
    return Scaled(jnp.asarray(rng.integers(-8, 9, shape), dtype),
                  jnp.asarray(scales, jnp.float32).astype(UE8M0), tile)


def operands_of(product, m, k, n, lead=()):
    """Operands of a Linear's product, M rows, K in and N out: tokens, and weights or gradients."""
    if product == FPROP:
        return quantized(1, (1, 128), *lead, m, k), quantized(2, (128, 128), *lead, k, n)
    if product == DGRAD:
        return quantized(1, (1, 128), *lead, m, n), quantized(2, (128, 128), *lead, k, n)
    return quantized(1, (128, 1), *lead, m, k), quantized(2, (128, 1), *lead, m, n)


def plain(a, b, by_row, by_column):
    """The definition of a kernel's `product`, a sum over tiles of K."""
    tiles = by_row.shape[1]
    a, b = (x.astype(jnp.float32).reshape(*x.shape[:2], tiles, -1) for x in (a, b))
    parts = jnp.einsum("emtk,entk->etmn", a, b)
    return (parts * by_row[..., :, None] * by_column[..., None, :]).sum(1)
