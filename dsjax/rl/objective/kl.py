"""Distance of the policy to a reference, estimated at the tokens that were sampled.

Axes: B outputs, T tokens.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

from dsjax.rl.objective.ratio import token_ratio


def k3(logprobs: Array, reference: Array) -> Array:
    """Return pi_ref/pi - log(pi_ref/pi) - 1: R1 eq. 2, DeepSeekMath eq. 4. [B, T] each.

    Never negative, 0 where both agree; its mean over tokens of pi is KL(pi || pi_ref). Its gradient
    is not that of the KL: 1 - pi_ref/pi, without bound where the reference is far above.
    """
    difference = reference - logprobs
    return jnp.expm1(difference) - difference


def unbiased(logprobs: Array, reference: Array, old: Array) -> Array:
    """Return pi/pi_old times k3, whose gradient is the KL's: V3.2 report sec. 3.1. [B, T] each.

    The ratio counts tokens of pi_old as tokens of pi, and gives a gradient itself:
    pi/pi_old * log(pi/pi_ref) in all.
    """
    return token_ratio(logprobs, old) * k3(logprobs, reference)
