"""Weights of tokens in the loss: which count, and by what each is divided.

Every aggregation of the literature is a weight for each token, made of the mask of the whole batch
before any gradient. A loss is then a sum, and no cut of the batch into parts changes it:

    loss = sum_{b,t} weights[b, t] * token loss[b, t].

Axes: B outputs, T tokens.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array


def counted(mask: Array, is_truncated: Array, is_constant: Array) -> Array:
    """Leave out outputs that were cut off by the limit, and those of groups of equal rewards.

    mask [B, T], is_truncated, is_constant [B] bool -> [B, T] bool. Weights are made of the result,
    so what is left out is in no loss, in no KL and in no denominator.
    """
    return mask.astype(bool) & ~(is_truncated | is_constant)[:, None]


def token_mean(mask: Array) -> Array:
    """Every token alike, 1 / tokens of the batch: DAPO eq. 8 (arXiv 2503.14476). [B, T] each.

    Sums to one; all zeros where nothing counts.
    """
    mask = _number(mask)
    return mask / jnp.maximum(mask.sum(), 1.0)


def sequence_mean(mask: Array) -> Array:
    """Every output alike, 1 / (outputs * length): DeepSeekMath eq. 3, R1 eq. 1. [B, T] each.

    Outputs without a token that counts are not among the outputs. Sums to one, or is all zeros.
    """
    mask = _number(mask)
    lengths = mask.sum(axis=-1, keepdims=True)
    outputs = (lengths > 0).astype(mask.dtype).sum()
    return mask / (jnp.maximum(lengths, 1.0) * jnp.maximum(outputs, 1.0))


def constant_length(mask: Array, length: int) -> Array:
    """Every token 1 / (outputs * length), one length for all: Dr. GRPO (arXiv 2503.20783).

    mask [B, T], length the limit of an output's tokens -> [B, T]. With length 1 and ratio 1 the
    gradient is that of R1 eq. 1 read by outputs. Outputs are counted as in `sequence_mean`.
    """
    mask = _number(mask)
    outputs = mask.any(axis=-1).astype(mask.dtype).sum()
    return mask / (jnp.maximum(outputs, 1.0) * length)


def total(values: Array, weights: Array) -> Array:
    """Return the sum of values * weights; a weight of 0 silences inf and NaN. [B, T] each -> []."""
    return jnp.where(weights != 0, values * jnp.where(weights != 0, weights, 0.0), 0.0).sum()


def _number(mask: Array) -> Array:
    return mask.astype(bool).astype(jnp.result_type(float))
