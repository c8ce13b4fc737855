"""Advantages of outputs within their group: those that answer the same prompt.

A group is named by an integer, any, the same for each of its outputs, so groups may be of unequal
size and in any order. Rewards must be finite; dsjax.rl.rewards sees to that.

Axes: B outputs.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from dsjax.numerics.wide import wide


def group_relative(rewards: Array, groups: Array, eps: float = 0.0, ddof: int = 1) -> Array:
    """Return (r - mean) / (std + eps) of each output's group: R1 eq. 3, DeepSeekMath sec. 4.1.2.

    rewards [B], groups [B] int32 -> [B]. A group of equal rewards has advantages of exactly 0, so
    the report's form needs no eps; trl 1.16 has 1e-4 and verl 0.9 1e-6. The report does not say
    which deviation it means; both divide by n - 1 (ddof 1).
    """
    centered = group_centered(rewards, groups)
    _, of, sizes = _grouped(rewards, groups)
    squares = _sums(centered**2, of)
    deviation = jnp.sqrt(squares / jnp.maximum(sizes - ddof, 1))[of]
    safe = jnp.where(deviation > 0, deviation, 1.0)
    return jnp.where(deviation > 0, centered / (safe + eps), 0.0)


def group_centered(rewards: Array, groups: Array) -> Array:
    """Return r - mean of each output's group: Dr. GRPO (arXiv 2503.20783), V3.2 report sec. 3.1.

    rewards [B], groups [B] int32 -> [B].
    """
    rewards, of, sizes = _grouped(rewards, groups)
    mean = _sums(rewards, of) / jnp.maximum(sizes, 1)
    return jnp.where(constant_groups(rewards, groups), 0.0, rewards - mean[of])


def constant_groups(rewards: Array, groups: Array) -> Array:
    """Mark outputs whose group's rewards are all equal: nothing can be learned from them.

    rewards [B], groups [B] int32 -> [B] bool. Compares rewards and no deviation, which rounding may
    lift above 0. A group of one is constant.
    """
    rewards, of, _ = _grouped(rewards, groups)
    most = jax.ops.segment_max(rewards, of, num_segments=rewards.size)
    least = jax.ops.segment_min(rewards, of, num_segments=rewards.size)
    return (most == least)[of]


def _grouped(rewards: Array, groups: Array) -> tuple[Array, Array, Array]:
    """Rewards in the dtype of sums, each output's group from 0 on, and every group's size [B]."""
    rewards = rewards.astype(wide(rewards.dtype))
    _, of = jnp.unique(groups, return_inverse=True, size=groups.size)
    return rewards, of, _sums(jnp.ones_like(rewards), of)


def _sums(values: Array, of: Array) -> Array:
    return jax.ops.segment_sum(values, of, num_segments=values.size)
