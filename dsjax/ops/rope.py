"""Rotary positions on interleaved channel pairs, and YaRN's stretch (V3 report sec. 2.1.1, 4.3).

Pairs are (x0, x1), (x2, x3), ... as in the released weights' complex view; libraries that rotate
halves hold the same function with the channels in another order. Axes: R rotary channels.
"""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array

from dsjax.config.model import RopeConfig, YarnConfig
from dsjax.numerics.wide import wide


@struct.dataclass
class Angles:
    """cos and sin of position times frequency, [..., T, R/2]."""

    cos: Array
    sin: Array


def yarn_mscale(yarn: YarnConfig | None, coefficient: float) -> float:
    """m = 0.1 c ln(factor) + 1, YaRN's square root of the temperature (V3 report sec. 4.3)."""
    if yarn is None or yarn.factor <= 1:
        return 1.0
    return 0.1 * coefficient * math.log(yarn.factor) + 1.0


def softmax_scale(rope: RopeConfig, qk_dim: int) -> float:
    """1 / sqrt(channels of a score), times YaRN's m squared."""
    mscale = yarn_mscale(rope.yarn, rope.yarn.mscale_all_dim) if rope.yarn else 1.0
    return mscale * mscale / math.sqrt(qk_dim)


def frequencies(rope: RopeConfig, rope_dim: int) -> np.ndarray:
    """Radians a position for each pair, [R/2], float64.

    With YaRN, f' = f (1 - r) + f / factor * r, where the ramp r goes from 0 at the pair that turns
    `beta_fast` times over the original length to 1 at the one that turns `beta_slow` times.
    """
    f = 1.0 / rope.theta ** (np.arange(0, rope_dim, 2) / rope_dim)
    if rope.yarn is None:
        return f
    y = rope.yarn

    def pair_that_turns(times: float) -> float:
        return (
            rope_dim
            * math.log(y.original_length / (times * 2 * math.pi))
            / (2 * math.log(rope.theta))
        )

    low = max(math.floor(pair_that_turns(y.beta_fast)), 0)
    high = min(math.ceil(pair_that_turns(y.beta_slow)), rope_dim - 1)
    width = high - low if high > low else 0.001
    ramp = np.clip((np.arange(rope_dim // 2) - low) / width, 0, 1)
    return f * (1 - ramp) + f / y.factor * ramp


def angles(rope: RopeConfig, rope_dim: int, positions: Array) -> Angles:
    """cos and sin for positions [..., T] int32; each [..., T, R/2], in JAX's default float."""
    dtype = jnp.result_type(float)
    turns = jnp.asarray(frequencies(rope, rope_dim), dtype)
    phase = positions[..., None].astype(dtype) * turns.reshape((1,) * positions.ndim + (-1,))
    gain = 1.0
    if rope.yarn is not None:
        gain = yarn_mscale(rope.yarn, rope.yarn.mscale)
        gain /= yarn_mscale(rope.yarn, rope.yarn.mscale_all_dim)
    return Angles(jnp.cos(phase) * gain, jnp.sin(phase) * gain)


def rotate(x: Array, by: Angles) -> Array:
    """Turn each pair of channels of x [..., R] by its angle; `by` broadcasts against x's pairs.

    Computed in float32 (or wider) and cast back.
    """
    pairs = x.astype(wide(x.dtype)).reshape(*x.shape[:-1], -1, 2)
    even, odd = pairs[..., 0], pairs[..., 1]
    lead = (1,) * (even.ndim - by.cos.ndim)
    cos, sin = by.cos.reshape(lead + by.cos.shape), by.sin.reshape(lead + by.sin.shape)
    turned = jnp.stack([even * cos - odd * sin, even * sin + odd * cos], axis=-1)
    return turned.reshape(x.shape).astype(x.dtype)
