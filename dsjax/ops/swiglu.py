"""SwiGLU between its two products, its input kept for the backward pass as a precision keeps it.

The input is cached and the output made again (V3 report sec. 3.3.3); in FP8 the cache is codes in
1x128 tiles, read in the backward pass alone. Axes: F hidden.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import Array

from dsjax.numerics.precision import Operand, Precision, name


def hidden(gate_up: Array) -> Array:
    """silu(gate) * up. gate_up [..., 2F], gate first -> [..., F]."""
    gate, up = jnp.split(gate_up, 2, axis=-1)
    return jax.nn.silu(gate) * up


def gradient(gate_up: Array, d_hidden: Array) -> Array:
    """The gradient of [..., 2F] for d_hidden [..., F]."""
    gate, up = jnp.split(gate_up, 2, axis=-1)
    s = jax.nn.sigmoid(gate)
    return jnp.concatenate([d_hidden * up * s * (1 + gate * (1 - s)), d_hidden * gate * s], -1)


def save(gate_up: Array, precision: Precision) -> Operand:
    """Return the part of gate_up [..., 2F] that waits for the backward pass, named for remat."""
    return name(precision.save(gate_up), "swiglu_input")


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def swiglu(precision: Precision, gate_up: Array) -> Array:
    """`hidden`, keeping its input in the given precision."""
    return hidden(gate_up)


def _forward(precision: Precision, gate_up: Array) -> tuple[Array, Operand]:
    return hidden(gate_up), save(gate_up, precision)


def _backward(precision: Precision, kept: Operand, d_hidden: Array) -> tuple[Array]:
    return (gradient(precision.restore(kept).astype(d_hidden.dtype), d_hidden),)


swiglu.defvjp(_forward, _backward)
