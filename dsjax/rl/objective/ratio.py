"""Ratio of the policy to the one that sampled, by token or by output, and the clipped surrogate.

Three readings of one idea. R1 writes the ratio of whole outputs, DeepSeekMath and V3.2 that of
tokens, GSPO the geometric mean over an output's tokens. The first is one over many tokens or
nothing, as a product of hundreds of factors, and with one update a rollout it is 1 either way.

Axes: B outputs, T tokens.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array, lax

R1_CLIP = 10.0
"""Clip ratio of R1's first stage of RL, as printed: [-9, 11], so nothing is clipped from below; a
low one cuts the gradient of many tokens off (R1 report, arXiv v2)."""


def token_ratio(logprobs: Array, old: Array) -> Array:
    """Return pi(token) / pi_old(token): DeepSeekMath eq. 3, V3.2 report sec. 3.1. [B, T] each."""
    return jnp.exp(logprobs - old)


def output_ratio(logprobs: Array, old: Array, mask: Array) -> Array:
    """Return pi(output) / pi_old(output), the product over its tokens: R1 eq. 1.

    logprobs, old, mask [B, T] -> [B, 1].
    """
    return jnp.exp(_log_ratio(logprobs, old, mask).sum(axis=-1, keepdims=True))


def sequence_ratio(logprobs: Array, old: Array, mask: Array) -> Array:
    """Return (pi(output) / pi_old(output))^(1/length): GSPO eq. 7 (arXiv 2507.18071).

    logprobs, old, mask [B, T] -> [B, 1]; 1 for an output without tokens.
    """
    return jnp.exp(_mean_log_ratio(logprobs, old, mask))


def sequence_ratio_by_token(logprobs: Array, sequence: Array) -> Array:
    """Give every token its output's ratio and a gradient of its own: GSPO-token, eq. 14.

    logprobs [B, T], sequence [B, 1] or [B, T] the value of `sequence_ratio` -> [B, T]:

        stop(sequence) * pi(token) / stop(pi(token)).

    With `sequence_mean` weights the gradient is that of the sequence form, and every position reads
    itself alone.
    """
    return lax.stop_gradient(sequence) * jnp.exp(logprobs - lax.stop_gradient(logprobs))


def clipped_surrogate(ratio: Array, advantages: Array, low: float, high: float) -> Array:
    """Return min(rho A, clip(rho, 1 - low, 1 + high) A): R1 eq. 1; DAPO (arXiv 2503.14476) for two.

    ratio [B, T] or [B, 1], advantages [B, 1] -> as ratio. To be made large.
    """
    return jnp.minimum(ratio * advantages, jnp.clip(ratio, 1.0 - low, 1.0 + high) * advantages)


def is_clipped(ratio: Array, advantages: Array, low: float, high: float) -> Array:
    """Mark where `clipped_surrogate` has no gradient; arguments and shapes are the same."""
    below = (ratio < 1.0 - low) & (advantages < 0)
    return below | ((ratio > 1.0 + high) & (advantages > 0))


def _log_ratio(logprobs: Array, old: Array, mask: Array) -> Array:
    """0 where the mask is false, whatever stands there."""
    return jnp.where(mask, logprobs, 0.0) - jnp.where(mask, old, 0.0)


def _mean_log_ratio(logprobs: Array, old: Array, mask: Array) -> Array:
    total = _log_ratio(logprobs, old, mask).sum(axis=-1, keepdims=True)
    return total / jnp.maximum(mask.sum(axis=-1, keepdims=True), 1).astype(total.dtype)
