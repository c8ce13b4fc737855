"""Codes and scales are bit-equal to the definition for every tile, format and kind of scale, and
every input, numbers or not, has a defined result.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsjax.numerics import formats, scaled
from tests.reference import quantize as reference

TILES = [(1, 128), (128, 1), (128, 128), (3, 5)]


def wide_values(seed, shape):
    """Normal numbers whose sizes differ by many powers of two, as in activation gradients."""
    rng = np.random.default_rng(seed)
    return (rng.standard_normal(shape) * np.exp(3 * rng.standard_normal(shape))).astype(np.float32)


def parts(x, tile, ue8m0, form):
    """Quantized x, values of its scales and codes, and what it is rounded to, in two ways."""
    q = scaled.quantize(jnp.asarray(x), tile, ue8m0, form)
    return (q, scaled.scale_values(q.scales), formats.decode(q.codes),
            scaled.rounded(jnp.asarray(x), tile, ue8m0, form), scaled.dequantize(q))


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def quantized(x, tile=(1, 128), ue8m0=False, form=formats.E4M3):
    """Quantized x, and the numbers that it stands for."""
    q = scaled.quantize(x, tile, ue8m0, form)
    return q, scaled.dequantize(q)


@pytest.mark.parametrize("ue8m0", [False, True], ids=["float", "pow2"])
@pytest.mark.parametrize("tile", TILES, ids=str)
@pytest.mark.parametrize("form", formats.FORMATS, ids=lambda form: form.name)
def test_codes_and_scales_are_bit_equal_to_the_definition(form, tile, ue8m0):
    x = wide_values(0, (67, 141))  # partial tiles at both edges
    values, scales = reference.quantize(x, tile, ue8m0, form.name)
    # Operation by operation for one tile; as one program for each.
    for make in (parts, jax.jit(parts, static_argnums=(1, 2, 3)))[tile != TILES[-1]:]:
        q, found, codes, rounded, back = make(x, tile, ue8m0, form)
        np.testing.assert_array_equal(found, scales)
        np.testing.assert_array_equal(codes, values)
        np.testing.assert_array_equal(rounded, back)
        assert q.scales.dtype == (formats.UE8M0 if ue8m0 else jnp.float32)


def test_the_call_of_the_documentation_gives_codes_and_scales():
    x = jnp.asarray(wide_values(1, (5, 300)))
    q = scaled.quantize(x, tile=(1, 128), ue8m0=False)
    assert (q.codes.shape, q.scales.shape) == ((5, 300), (5, 3))
    by_hand = formats.decode(q.codes) * np.repeat(q.scales, 128, axis=1)[:, :300]
    np.testing.assert_array_equal(scaled.dequantize(q), by_hand)


@pytest.mark.parametrize("ue8m0", [False, True], ids=["float", "pow2"])
def test_error_is_half_a_step_of_the_code(ue8m0):
    x = wide_values(2, (64, 256))
    q, back = quantized(x, (1, 128), ue8m0)
    scale = np.repeat(scaled.scale_values(q.scales), 128, axis=1)
    # Half of the last of 4 significant bits, or of the smallest subnormal 2^-9; the inverse of a
    # float scale and the two products round by 2^-24 each.
    allowed = np.maximum(2.0**-4 * np.abs(x), 2.0**-10 * scale) * (1 + 2.0**-18)
    assert np.all(np.abs(np.asarray(back) - x) <= allowed)


@pytest.mark.parametrize("form", formats.FORMATS, ids=lambda form: form.name)
def test_power_of_two_scales_dequantize_exactly_in_bfloat16(form):
    q, back = quantized(wide_values(3, (32, 200)), (1, 128), True, form)
    low = np.asarray(jax.jit(scaled.dequantize, static_argnums=1)(q, jnp.bfloat16))
    assert low.dtype == jnp.bfloat16
    np.testing.assert_array_equal(low.astype(np.float32), back)


@pytest.mark.parametrize("ue8m0", [False, True], ids=["float", "pow2"])
def test_quantizing_again_changes_nothing_when_scales_are_powers_of_two(ue8m0):
    _, first = quantized(wide_values(4, (32, 256)), (1, 128), ue8m0)
    _, again = quantized(first, (1, 128), ue8m0)
    assert np.array_equal(first, again) or not ue8m0


@pytest.mark.parametrize("ue8m0", [False, True], ids=["float", "pow2"])
@pytest.mark.parametrize("form", formats.FORMATS, ids=lambda form: form.name)
def test_the_largest_of_a_tile_is_the_largest_code_at_every_magnitude(form, ue8m0):
    """No clip follows the scale: its rounding must never lift an entry over the format's end."""
    bits = np.random.default_rng(0).integers(0x38D1B718, 0x7F800000, 1 << 14, np.uint32)
    top = jnp.asarray(bits.view(np.float32))[:, None]  # from the floor, 1e-4, to float32's end
    x = jnp.concatenate([top, -top, top / 3, jnp.zeros_like(top)], axis=1)
    q = jax.jit(lambda x: scaled.quantize(x, (1, 4), ue8m0, form))(x)
    codes = np.asarray(formats.decode(q.codes))
    assert np.abs(codes).max() <= form.largest
    if not ue8m0:
        np.testing.assert_array_equal(codes[:, :2], [[form.largest, -form.largest]] * len(x))
    assert (codes[:, 0] > form.largest / 2 * (1 - 2.0**-form.mantissa)).all()
    value = jax.jit(lambda x: scaled.rounded(x, (1, 4), ue8m0, form))(x)
    np.testing.assert_array_equal(value, scaled.dequantize(q))


def test_leading_dims_are_tiled_singly():
    x = wide_values(5, (3, 2, 130, 140))
    whole, values = quantized(x, (128, 128))
    assert whole.scales.shape == (3, 2, 2, 2)
    one, alone = quantized(x[1, 0], (128, 128))
    np.testing.assert_array_equal(np.asarray(whole.scales)[1, 0], one.scales)
    np.testing.assert_array_equal(np.asarray(values)[1, 0], alone)


def test_a_whole_tile_spans_its_dim():
    x = wide_values(6, (5, 200))
    q, _ = quantized(x, (scaled.WHOLE, scaled.WHOLE))
    assert q.scales.shape == (1, 1)
    np.testing.assert_array_equal(np.asarray(q.scales)[0, 0], np.abs(x).max() / np.float32(448))


@pytest.mark.parametrize("ue8m0", [False, True], ids=["float", "pow2"])
def test_zero_tiny_huge_and_broken_tiles_have_defined_results(ue8m0):
    ones = np.ones(128, np.float32)
    rows = np.stack([0 * ones, 1e-30 * ones, 1e-4 * ones, 3e38 * ones, ones, ones, ones])
    rows[4, 3], rows[5, 3], rows[6, 3] = np.nan, np.inf, -np.inf
    q, back = quantized(rows, (1, 128), ue8m0)
    scales, back = np.asarray(scaled.scale_values(q.scales))[:, 0], np.asarray(back)
    floor = np.float32(1e-4) / np.float32(448)
    if ue8m0:
        floor = np.float32(2.0 ** np.ceil(np.log2(floor)))
    np.testing.assert_array_equal(scales[:3], 3 * [floor])  # amax below 1e-4 counts as 1e-4
    np.testing.assert_array_equal(back[:2], np.zeros((2, 128)))  # what the floor cannot hold is 0
    np.testing.assert_allclose(back[2:4], rows[2:4], rtol=2.0**-4)
    assert np.all(np.isfinite(back[:4]))
    # One entry that is no number makes the tile NaN, other tiles stay.
    assert np.all(np.isnan(scales[4:]))
    assert np.all(np.isnan(back[4:]))


@pytest.mark.parametrize("shape", [(257, 130), (256, 256), (40, 60)], ids=str)
@pytest.mark.parametrize("tile", [(1, 128), (128, 1), (128, 128)], ids=str)
@pytest.mark.parametrize("broken", [np.nan, np.inf], ids=str)
def test_wherever_an_entry_is_no_number_its_tile_shows_it_and_no_other(shape, tile, broken):
    """XLA's own maximum of floats on a CPU loses a NaN here and there."""
    x = wide_values(7, shape)
    quantize = jax.jit(lambda x: scaled.quantize(x, tile).scales)
    sound = np.asarray(quantize(x))
    for place in [(0, 0), (5, 7), (shape[0] // 2, 33), (shape[0] - 1, shape[1] - 1)]:
        held = x.copy()
        held[place] = broken
        expected = sound.copy()
        expected[place[0] // tile[0], place[1] // tile[1]] = np.nan
        np.testing.assert_array_equal(quantize(held), expected)


def test_a_tile_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"tile=\(1, 1, 128\) does not fit x of shape \(4, 4\)"):
        scaled.quantize(jnp.ones((4, 4)), (1, 1, 128))
    with pytest.raises(TypeError, match=r"tile=128 is no tuple; give lengths .* as in \(1, 128\)"):
        scaled.quantize(jnp.ones((4, 4)), 128)


def test_scales_under_vmap_are_those_without():
    x = jnp.asarray(np.random.default_rng(5).standard_normal((3, 65, 200)), jnp.float32)
    mapped = jax.jit(jax.vmap(scaled.quantize))(x)
    for i in range(3):
        one = jax.jit(scaled.quantize)(x[i])
        np.testing.assert_array_equal(mapped.scales[i], one.scales)
        np.testing.assert_array_equal(mapped.codes[i], one.codes)
