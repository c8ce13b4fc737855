"""The tensor core's limited accumulation, simulated (V3 report sec. 3.3.2, fig. 7b).

Hopper's FP8 tensor cores sum into registers of 1 sign, 8 exponent and 13 fraction bits ("Insights
into DeepSeek-V3", sec. 3.1.1; the V3 report says about 14 bits). One instruction takes 32 of K:
its products and the register are shifted to the largest exponent among them, what falls below 13
fraction bits of that is cut off, and the rest is added. The longer the sum, the more is cut off,
and always towards zero. V3 therefore moves the register to a float32 sum every N_C = 128 of K,
which is four instructions ("promotion").

`product` does this for every single product and is for studies. `product_fast` adds the exact sum
of an instruction to the register and cuts that off: cheap enough to train with, of the same size of
error where products have both signs, and far too kind where all have one.

Axes: M rows, K summed, N columns.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array, lax

FRACTION_BITS = 13
INSTRUCTION = 32  # of K in one FP8 instruction
FLOAT32_MANTISSA = 23


def product(a: Array, b: Array, promote: int | None = 128,
            fraction_bits: int = FRACTION_BITS) -> Array:
    """a [M, K] b [K, N] as the tensor core sums it, float32. `promote` None never promotes."""

    def add(register: Array, part: tuple[Array, Array]) -> Array:
        terms = part[0].T[:, :, None] * part[1][:, None, :]
        terms = jnp.concatenate([register[None], terms])
        unit = _unit(jnp.abs(terms).max(axis=0, keepdims=True), fraction_bits)
        kept = jnp.trunc(terms / unit).sum(axis=0) * unit[0]  # exact: 33 terms of 14 bits
        return truncate(kept, fraction_bits)

    return _in_registers(a, b, promote, add)


def product_fast(a: Array, b: Array, promote: int | None = 128,
                 fraction_bits: int = FRACTION_BITS) -> Array:
    """`product` with exact sums inside an instruction: only the register is cut off."""

    def add(register: Array, part: tuple[Array, Array]) -> Array:
        exact = jnp.matmul(*part, precision=lax.Precision.HIGHEST,
                           preferred_element_type=jnp.float32)
        return truncate(register + exact, fraction_bits)

    return _in_registers(a, b, promote, add)


def _in_registers(a: Array, b: Array, promote: int | None,
                  add: Callable[[Array, tuple[Array, Array]], Array]) -> Array:
    """Add instruction by instruction into a register, and promote it to a float32 sum."""
    if promote is not None and (promote < INSTRUCTION or promote % INSTRUCTION):
        raise ValueError(f"promote={promote} is not a multiple of {INSTRUCTION}, what one "
                         "instruction sums; choose 32, 64, 128 or None for never")
    m, k, n = *a.shape, b.shape[1]
    fill = -k % INSTRUCTION
    a, b = jnp.pad(a, ((0, 0), (0, fill))), jnp.pad(b, ((0, fill), (0, 0)))
    count = (k + fill) // INSTRUCTION
    a_parts = jnp.moveaxis(a.reshape(m, count, INSTRUCTION), 1, 0)
    b_parts = b.reshape(count, INSTRUCTION, n)
    every = count if promote is None else promote // INSTRUCTION

    def step(state: tuple[Array, Array], at: tuple[Array, Array, Array]):
        total, register = state
        register = add(register, at[1:])
        is_due = (at[0] + 1) % every == 0
        total = jnp.where(is_due, total + register, total)
        return (total, jnp.where(is_due, 0.0, register)), None

    zero = jnp.zeros((m, n), jnp.float32)
    (total, register), _ = lax.scan(step, (zero, zero), (jnp.arange(count), a_parts, b_parts))
    return total + register


def truncate(x: Array, fraction_bits: int = FRACTION_BITS) -> Array:
    """Cut float32 off to fewer fraction bits, towards zero."""
    dropped = FLOAT32_MANTISSA - fraction_bits
    bits = lax.bitcast_convert_type(x, jnp.int32)
    return lax.bitcast_convert_type((bits >> dropped) << dropped, jnp.float32)


def _unit(largest: Array, fraction_bits: int) -> Array:
    """The last fraction place of a positive number, as a power of two."""
    exponent = (lax.bitcast_convert_type(largest, jnp.int32) >> FLOAT32_MANTISSA) - fraction_bits
    return lax.bitcast_convert_type(jnp.maximum(exponent, 1) << FLOAT32_MANTISSA, jnp.float32)


@functools.partial(jax.jit, static_argnums=(2, 3))
def relative_error(a: Array, b: Array, promote: int | None,
                   fraction_bits: int = FRACTION_BITS) -> tuple[Array, Array]:
    """Largest and mean |error| of `product` over the mean magnitude of the product's entries.

    a [M, K] and b [K, N] hold E4M3 numbers. What is called exact is summed in float32, whose
    roundings are a thousand times smaller than the register's.
    """
    exact = jnp.matmul(a, b, precision=lax.Precision.HIGHEST)
    size = jnp.abs(exact).mean()
    error = jnp.abs(product(a, b, promote, fraction_bits) - exact)
    return error.max() / size, error.mean() / size
