"""The dtype of sums, norms, softmaxes and losses: float32, or float64 for float64.

Nothing in training is float64; the model is written so that it could be, and the tests hold it to
the NumPy reference there, where an error of one part in 10^10 still shows.

Products of float32 operands are float32 on every machine, because they ask for it: left to itself
XLA multiplies them as TF32 on a GPU and in one pass of bfloat16 on a TPU.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike


def wide(dtype: DTypeLike) -> jnp.dtype:
    """float32 for float32 and anything narrower, float64 for float64."""
    return jnp.dtype(jnp.float64 if jnp.dtype(dtype) == jnp.float64 else jnp.float32)


def exact(dtype: DTypeLike) -> lax.Precision | None:
    """The precision of products of such operands; narrower ones are exact without being told."""
    return lax.Precision.HIGHEST if jnp.dtype(dtype) == wide(dtype) else None
