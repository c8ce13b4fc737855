"""Tiles of E4M3 with float32 scales are qwix's; needs qwix (`pip install .[conformance]`).

qwix divides by the scale and has no floor for it; dsjax multiplies by the inverse. So a code may be
its neighbor where x / scale lies within a float32 rounding of the middle between two codes.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("qwix", reason="the live comparison needs pip install .[conformance]")

import qwix

from dsjax.numerics import formats, gemm, scaled
from dsjax.ops.linear import linear

pytestmark = pytest.mark.filterwarnings("ignore")  # qwix's own


def draw(seed, *shape):
    rng = np.random.default_rng(seed)
    size = np.exp(2 * rng.standard_normal((shape[0], 1)) + rng.standard_normal((1, shape[1])))
    return jnp.asarray(size * rng.standard_normal(shape), jnp.float32)


def by_qwix(x, tile):
    """A matrix quantized by qwix in tiles; a tile of one row is a channel of its own."""
    channels = tuple(d for d in (0, 1) if tile[d] == 1)
    return qwix.quantize(x, jnp.float8_e4m3fn, channelwise_axes=channels,
                         tiled_axes={d: tile[d] for d in (0, 1) if tile[d] > 1})


TILES = [(1, 128), (128, 1), (128, 128)]


@pytest.mark.parametrize("tile", TILES, ids=str)
def test_codes_and_scales_are_qwix_s(tile):
    x = draw(0, 256, 384)
    mine, theirs = scaled.quantize(x, tile), by_qwix(x, tile)
    np.testing.assert_allclose(mine.scales, theirs.scale, rtol=2.0**-23)
    codes, other = (np.asarray(formats.decode(c)) for c in (mine.codes, theirs.qvalue))
    assert np.mean(codes != other) < 1e-4
    assert np.all(np.abs(codes - other) <= 2.0**-3 * np.maximum(np.abs(codes), 2.0**-6))


def test_the_three_products_are_those_of_qwix_s_operands():
    x, w, dy = draw(1, 256, 384), draw(2, 384, 128), draw(3, 256, 128)
    precision = gemm.precision(gemm.V3)
    y, pull = jax.vjp(lambda x, w: linear(x, w, precision=precision), x, w)
    dx, dw = pull(dy)

    def read(x, tile):
        return np.asarray(qwix.dequantize(by_qwix(x, tile)), np.float64)

    rows, columns, blocks = TILES
    kept = read(x, rows)
    for actual, expected in [
        (y, kept @ read(w, blocks)),
        (dx, read(dy, rows) @ read(w, blocks).T),
        (dw, read(jnp.asarray(kept, jnp.float32), columns).T @ read(dy, columns)),
    ]:
        # Where a code is a neighbor's, an operand is off by 2^-3; one in ten thousand is.
        error = np.linalg.norm(actual - expected)
        assert error < 2e-3 * np.linalg.norm(expected)
