"""Redundant experts: busy experts have copies, and a token chooses one (V3 report sec. 3.4).

A router chooses logical experts. Each is held by one or more physical experts with the same
weights; `parallel.eplb` says which. The copy that a token takes depends on its own routing and
nothing else: whoever else is there, it goes the same way, and its sum has the same bits.

Axes: E logical experts, C copies at most, K experts per token, P physical experts.
"""

from __future__ import annotations

import jax.numpy as jnp
from flax import struct
from jax import Array, lax


@struct.dataclass
class Replicas:
    """Physical experts of one layer's logical ones."""

    slots: Array  # [E, C] int32; beyond an expert's count anything
    counts: Array  # [E] int32, from 1 to C
    of: Array  # [P] int32, the logical expert that each physical one holds

    def chosen(self, experts: Array, weights: Array) -> Array:
        """The physical experts that tokens take, [..., K]; experts and routing weights [..., K]."""
        copy = _mixed(weights)[..., None] % self.counts[experts].astype(jnp.uint32)
        return self.slots[experts, copy.astype(jnp.int32)]


def _mixed(weights: Array) -> Array:
    """A number of each token's weights to the last bit, evenly spread: [..., K] -> [...].

    Mixed as in MurmurHash3's last step (A. Appleby), one by one: weights that sum to one hardly
    differ in the sum of their bits.
    """
    h = lax.bitcast_convert_type(weights.astype(jnp.float32), jnp.uint32)
    return _spread(h).sum(-1, dtype=jnp.uint32)


def _spread(h: Array) -> Array:
    h = (h ^ (h >> 16)) * jnp.uint32(0x85EBCA6B)
    h = (h ^ (h >> 13)) * jnp.uint32(0xC2B2AE35)
    return h ^ (h >> 16)
