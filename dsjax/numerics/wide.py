"""The dtype of sums, norms, softmaxes and losses: float32, or float64 for float64.

Nothing in training is float64; the model is written so that it could be, and the tests hold it to
the NumPy reference there, where an error of one part in 10^10 still shows.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax.typing import DTypeLike


def wide(dtype: DTypeLike) -> jnp.dtype:
    """float32 for float32 and anything narrower, float64 for float64."""
    return jnp.dtype(jnp.float64 if jnp.dtype(dtype) == jnp.float64 else jnp.float32)
