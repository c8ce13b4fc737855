"""The number formats of FP8 training (V3 report sec. 3.3), and how float32 enters them.

    E4M3   8 bits, largest 448: operands of every product
    E5M2   8 bits, largest 57,344: what others use for gradients; here an ablation
    E5M6   12 bits, float16 with 6 mantissa bits, largest 65,024: the input of the projection after
           attention, while it waits for the backward pass (TileKernels, cast_e5m6)
    UE8M0  an exponent byte: scales that are powers of two

A value is sign * 2^e * (1 + m / 2^M), or below the smallest normal number a multiple of the
smallest subnormal one. Encoding rounds to nearest, ties to even, saturates at the largest number
(infinity included) and keeps NaN. It works on the bits: the cast of JAX makes NaN of what is above
464 and takes 2.5 times as long on a CPU (4M numbers: 2.3 ms against 0.9).

Encode from float32 only. Through bfloat16 a number would be rounded twice.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from jax import Array, lax
from jax.typing import DTypeLike


@dataclasses.dataclass(frozen=True)
class Format:
    """A floating-point format and the dtype that its codes are kept in."""

    name: str
    dtype: jnp.dtype
    mantissa: int  # stored bits
    lowest_exponent: int  # of a normal number
    largest: float
    bits: int
    shift: int = 0  # empty bits below the code in `dtype`


E4M3 = Format("e4m3", jnp.dtype(jnp.float8_e4m3fn), 3, -6, 448.0, 8)
E5M2 = Format("e5m2", jnp.dtype(jnp.float8_e5m2), 2, -14, 57344.0, 8)
E5M6 = Format("e5m6", jnp.dtype(jnp.float16), 6, -14, 65024.0, 12, shift=4)
UE8M0 = jnp.dtype(jnp.float8_e8m0fnu)
FORMATS = (E4M3, E5M2, E5M6)

FLOAT32_MANTISSA, FLOAT32_BIAS = 23, 127


def of(codes: Array) -> Format:
    """The format that an array of codes is in."""
    for form in FORMATS:
        if form.dtype == codes.dtype:
            return form
    names = [str(form.dtype) for form in FORMATS]
    raise TypeError(f"codes are {codes.dtype}, which is no 8-bit format; use one of {names}")


def encode(x: Array, form: Format, saturate: bool = True) -> Array:
    """Round float32 numbers into a format, saturating. Any shape; codes have `form.dtype`.

    Without `saturate` none may round to more than the largest number.
    """
    if x.dtype != jnp.float32:
        raise TypeError(f"x is {x.dtype}; convert to float32 first, so that it is rounded once")
    if saturate:
        x = jnp.clip(x, -form.largest, form.largest)
    bits = lax.bitcast_convert_type(x, jnp.int32)
    magnitude = bits & 0x7FFFFFFF
    dropped = FLOAT32_MANTISSA - form.mantissa
    # Half of the last kept place, less one unless the kept part is odd: ties go to even. A carry
    # runs into the exponent, which is the next binade.
    half = (1 << (dropped - 1)) - 1 + ((magnitude >> dropped) & 1)
    zero_exponent = FLOAT32_BIAS + form.lowest_exponent - 1
    normal = ((magnitude + half) >> dropped) - (zero_exponent << form.mantissa)
    # Adding a number whose last place is the smallest subnormal rounds to a multiple of that.
    anchor = jnp.float32(2.0 ** (form.lowest_exponent - form.mantissa + FLOAT32_MANTISSA))
    size = lax.bitcast_convert_type(magnitude, jnp.float32)
    subnormal = lax.bitcast_convert_type(size + anchor, jnp.int32) & ((2 << form.mantissa) - 1)
    smallest_normal = (zero_exponent + 1) << FLOAT32_MANTISSA
    code = jnp.where(magnitude < smallest_normal, subnormal, normal)
    is_nan = magnitude > 0x7F800000
    code = jnp.where(is_nan, _nan_code(form), code)
    wide = jnp.uint16 if form.dtype.itemsize == 2 else jnp.uint8
    sign_place = 8 * form.dtype.itemsize - 1 - form.shift
    code = code | (((bits >> 31) & 1) << sign_place)
    return lax.bitcast_convert_type((code << form.shift).astype(wide), form.dtype)


def _nan_code(form: Format) -> int:
    """Code of NaN: all ones in E4M3 (which has no infinity), a quiet NaN in the others."""
    if form is E4M3:
        return 0x7F
    return (0x1F << form.mantissa) | (1 << (form.mantissa - 1))


def decode(codes: Array, dtype: DTypeLike = jnp.float32) -> Array:
    """The numbers that codes stand for; exact in float32 and in bfloat16."""
    form = of(codes)
    if form is not E4M3:
        return codes.astype(dtype)
    # On the bits, as a CPU has no instruction for E4M3 and JAX's cast does not vectorize.
    code = lax.bitcast_convert_type(codes, jnp.uint8).astype(jnp.int32)
    magnitude = code & 0x7F
    bits = (magnitude << 20) + ((FLOAT32_BIAS - 7) << FLOAT32_MANTISSA)
    subnormal = magnitude.astype(jnp.float32) * 2.0**-9
    size = jnp.where(magnitude < 8, subnormal, lax.bitcast_convert_type(bits, jnp.float32))
    size = jnp.where(magnitude == 0x7F, jnp.nan, size)
    signed = lax.bitcast_convert_type(size, jnp.int32) | ((code & 0x80) << 24)
    return lax.bitcast_convert_type(signed, jnp.float32).astype(dtype)


def rounded(x: Array, form: Format, saturate: bool = True) -> Array:
    """`decode(encode(x))` without the codes, in half the time on a CPU. x float32, any shape.

    Zeros are +0, where codes keep the sign. Adding and subtracting a number whose last place is
    that of the format leaves x rounded to it.
    """
    if saturate:
        x = jnp.clip(x, -form.largest, form.largest)
    exponent = lax.bitcast_convert_type(x, jnp.int32) & 0x7F800000
    lowest = (FLOAT32_BIAS + form.lowest_exponent) << FLOAT32_MANTISSA
    up = (FLOAT32_MANTISSA - form.mantissa) << FLOAT32_MANTISSA
    anchor = lax.bitcast_convert_type(jnp.maximum(exponent, lowest) + up, jnp.float32)
    anchor = jnp.copysign(anchor, x)
    return (x + anchor) - anchor


def to_bfloat16(x: Array) -> Array:
    """Float32 numbers that bfloat16 holds exactly (or NaN), in bfloat16.

    Leaves out their empty half, where a cast would round: on a CPU that is half the time.
    """
    upper = lax.bitcast_convert_type(x, jnp.uint32) >> 16
    return lax.bitcast_convert_type(upper.astype(jnp.uint16), jnp.bfloat16)


def to_power_of_two(scale: Array) -> Array:
    """Round positive normal float32 up to powers of two, as UE8M0 codes; NaN for NaN and inf."""
    bits = lax.bitcast_convert_type(scale, jnp.int32)
    exponent = (bits >> FLOAT32_MANTISSA) + ((bits & 0x7FFFFF) != 0).astype(jnp.int32)
    return lax.bitcast_convert_type(jnp.minimum(exponent, 255).astype(jnp.uint8), UE8M0)


def from_power_of_two(codes: Array) -> Array:
    """UE8M0 codes as float32."""
    exponent = lax.bitcast_convert_type(codes, jnp.uint8).astype(jnp.int32)
    value = lax.bitcast_convert_type(exponent << FLOAT32_MANTISSA, jnp.float32)
    return jnp.where(exponent == 255, jnp.nan, value)
