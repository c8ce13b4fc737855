"""Engine and trainer compared at the tokens that the engine sampled, and the correction.

The engine (the sampler) and the trainer have the same weights and differ by kernels, precision,
routes and cuts of the distribution. `trainer` are log-probabilities by the trainer before its first
update of the rollout, `engine` those that the engine reported with its tokens.

Axes: B outputs, T tokens.
"""

from __future__ import annotations

import jax.numpy as jnp
from flax import struct
from jax import Array, lax

from dsjax.rl.objective import kl

QUANTILES = (0.01, 0.5, 0.99)


def token_weights(trainer: Array, engine: Array, most: float) -> Array:
    """Return min(pi_trainer / pi_engine, most) by token: truncated importance sampling.

    trainer, engine [B, T] -> [B, T], without a gradient. Source: Yao et al. 2025, "Your efficient
    RL framework secretly brings you off-policy RL training"; verl 0.9 takes 2 for `most`. Biased,
    of small variance.
    """
    return lax.stop_gradient(jnp.minimum(jnp.exp(trainer - engine), most))


def sequence_weights(trainer: Array, engine: Array, mask: Array, most: float) -> Array:
    """Return min(product over tokens of pi_trainer / pi_engine, most): the same by output.

    trainer, engine, mask [B, T] -> [B, 1], without a gradient. Unbiased but for the truncation, of
    large variance.
    """
    logs = jnp.where(mask, trainer, 0.0) - jnp.where(mask, engine, 0.0)
    summed = logs.sum(axis=-1, keepdims=True)
    return lax.stop_gradient(jnp.minimum(jnp.exp(summed), most))


def is_on_policy(logprobs: Array, engine: Array, advantages: Array, mask: Array,
                 threshold: float) -> Array:
    """Mark outputs that are kept by off-policy sequence masking: V3.2 report sec. 3.1.

    logprobs (of the policy as it is now), engine, mask [B, T], advantages [B] -> [B] bool. An
    output goes if its advantage is negative and the mean over its tokens of log(pi_engine / pi) is
    above `threshold`: to be told off for what one would no longer say teaches little and disturbs.
    As in the report its tokens stay in the denominator; give the result to `loss` as weights.
    """
    logs = jnp.where(mask, engine, 0.0) - jnp.where(mask, lax.stop_gradient(logprobs), 0.0)
    lengths = jnp.maximum(mask.sum(axis=-1), 1).astype(logs.dtype)
    return (advantages >= 0) | (logs.sum(axis=-1) / lengths <= threshold)


@struct.dataclass
class Mismatch:
    """Statistics over the tokens of a batch; NaN if one of them has a log-probability of NaN."""

    kl: Array  # [] mean of log(pi_engine / pi_trainer), an estimate of KL(engine || trainer)
    k3: Array  # [] the same by Schulman's estimator, never negative
    quantiles: Array  # [Q] of pi_trainer / pi_engine
    outside: Array  # [] share of tokens whose ratio is outside [0.9, 1.1]


def statistics(trainer: Array, engine: Array, mask: Array,
               quantiles: tuple[float, ...] = QUANTILES) -> Mismatch:
    """Compare both sides' log-probabilities. [B, T] each; NaN where no token counts."""
    log_ratio = jnp.where(mask, trainer, 0.0) - jnp.where(mask, engine, 0.0)
    ratio, count = jnp.exp(log_ratio), mask.sum().astype(log_ratio.dtype)
    far = mask & ((ratio < 0.9) | (ratio > 1.1))
    is_known = ~jnp.isnan(log_ratio).any()
    found = jnp.nanquantile(jnp.where(mask, ratio, jnp.nan),
                            jnp.asarray(quantiles, ratio.dtype))
    return Mismatch(
        kl=-log_ratio.sum() / count,
        k3=jnp.where(mask, kl.k3(jnp.zeros_like(log_ratio), log_ratio), 0.0).sum() / count,
        quantiles=jnp.where(is_known, found, jnp.nan),
        outside=jnp.where(is_known, far.sum().astype(log_ratio.dtype) / count, jnp.nan))
