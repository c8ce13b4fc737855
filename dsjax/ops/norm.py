"""RMSNorm, in float32 (or wider) whatever the input's dtype."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from dsjax.numerics.wide import wide


def rms_norm(x: Array, gain: Array, eps: float) -> Array:
    """Divide by the root mean square over the last dim and multiply by `gain`.

    x [..., D], gain [D]. Returns x's shape and dtype.
    """
    x32 = x.astype(wide(x.dtype))
    scale = jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + eps)
    gain = gain.reshape((1,) * (x.ndim - 1) + gain.shape)
    return (x32 * scale * gain.astype(x32.dtype)).astype(x.dtype)
