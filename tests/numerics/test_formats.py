"""Encoding rounds every float32 to the nearest number of the format, ties to even, and saturates;
decoding is exact.
"""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from dsjax.numerics import formats
from tests.reference import quantize as reference

encode = jax.jit(formats.encode, static_argnums=1)
decode = jax.jit(formats.decode, static_argnums=1)
ALL = pytest.mark.parametrize("form", formats.FORMATS, ids=lambda form: form.name)


def hard_values(form):
    """Numbers, the middles between them, and what lies a float32 step beside either."""
    table = reference.numbers(form.name).astype(np.float32)
    middles = (table[1:] + table[:-1]) / 2
    near = np.concatenate([table, middles])
    near = np.concatenate([near, np.nextafter(near, np.float32(np.inf)),
                           np.nextafter(near, np.float32(0))])
    beyond = np.array([form.largest * 1.02, form.largest * 1.04, 1e30, np.inf], np.float32)
    return np.concatenate([near, beyond, -near, -beyond])


@ALL
def test_every_number_and_every_middle_rounds_as_the_definition_says(form):
    x = hard_values(form)
    table = reference.numbers(form.name)
    expected = np.copysign(table[reference.nearest(x, form.name)], x)
    codes = encode(x, form)
    np.testing.assert_array_equal(jax.jit(lambda x: formats.rounded(x, form))(x), expected)
    decoded = np.asarray(decode(codes))
    # A CPU reads numbers below 2^-126 as zero; the formats end far above.
    np.testing.assert_array_equal(decoded, expected)
    assert not np.any(np.signbit(decoded) ^ np.signbit(x))
    assert formats.of(codes) is form


@ALL
def test_decoding_is_exact_in_bfloat16_too(form):
    numbers = reference.numbers(form.name).astype(np.float32)
    codes = encode(numbers, form)
    np.testing.assert_array_equal(decode(codes), numbers)
    low = np.asarray(decode(codes, jnp.bfloat16))
    assert low.dtype == jnp.bfloat16
    np.testing.assert_array_equal(low.astype(np.float32), numbers)


@pytest.mark.parametrize("form", [formats.E4M3, formats.E5M2], ids=lambda form: form.name)
def test_codes_are_those_of_ml_dtypes_below_saturation(form, key):
    x = np.array(jax.random.normal(key, (4096,)))
    x *= np.exp2(np.arange(4096, dtype=np.float32) % 24 - 14)
    expected = np.clip(x, -form.largest, form.largest).astype(form.dtype)
    codes = np.asarray(encode(x, form))
    np.testing.assert_array_equal(codes.view(np.uint8), expected.view(np.uint8))


@ALL
def test_every_code_decodes_as_its_dtype_does(form):
    codes = np.arange(2 ** (8 * form.dtype.itemsize), dtype=f"u{form.dtype.itemsize}")
    codes = codes.view(form.dtype)
    expected = codes.astype(np.float32)
    np.testing.assert_array_equal(decode(codes), expected)


@ALL
def test_nan_stays_nan_and_infinity_saturates(form):
    x = np.array([np.nan, -np.nan, np.inf, -np.inf, 0.0, -0.0], np.float32)
    decoded = np.asarray(decode(encode(x, form)))
    np.testing.assert_array_equal(
        decoded, [np.nan, np.nan, form.largest, -form.largest, 0.0, -0.0])
    np.testing.assert_array_equal(np.signbit(decoded[-2:]), [False, True])


def test_encoding_refuses_what_was_rounded_before():
    with pytest.raises(TypeError, match="bfloat16"):
        formats.encode(jnp.ones(3, jnp.bfloat16), formats.E4M3)


def test_scales_round_up_to_powers_of_two():
    scale = np.array([1.0, 1.0000001, 0.75, 0.5, 3e-7, 1e30, np.inf, np.nan], np.float32)
    codes = jax.jit(formats.to_power_of_two)(scale)
    assert codes.dtype == ml_dtypes.float8_e8m0fnu
    with np.errstate(all="ignore"):
        expected = 2.0 ** np.ceil(np.log2(np.asarray(scale, np.float64)))
    expected[~np.isfinite(expected)] = np.nan
    np.testing.assert_array_equal(jax.jit(formats.from_power_of_two)(codes), expected)
    np.testing.assert_array_equal(np.asarray(codes).astype(np.float32), expected)
