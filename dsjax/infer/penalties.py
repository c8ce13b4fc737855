"""Penalties on tokens that were there before: of the OpenAI API, and for repetition.

Axes: B rows, T distributions a row, S positions, V vocabulary.
"""

from __future__ import annotations

import jax.numpy as jnp
from flax import struct
from jax import Array, lax

from dsjax.infer.sample import SamplingParams
from dsjax.numerics.wide import wide


@struct.dataclass
class Text:
    """Tokens that are counted: those of a row up to a position."""

    tokens: Array  # [B, S]
    prompt_len: Array  # [B]
    upto: Array  # [B, T] position of the newest one that each distribution counts


def penalized(logits: Array, text: Text, sampling: SamplingParams) -> Array:
    """Lower the logits [B, T, V] of tokens that were there before, as each row asks.

    Presence and frequency count the continuation; repetition (CTRL, arXiv 1909.05858, sec. 4.1)
    counts the prompt too.
    """
    if sampling.work != "any":
        return logits
    presence, frequency, repetition = (sampling.penalties[:, i, None, None] for i in range(3))
    is_asked = (presence != 0) | (frequency != 0) | (repetition != 1)

    def lower(logits: Array) -> Array:
        at = jnp.arange(text.tokens.shape[1], dtype=text.upto.dtype)[None, None]
        is_before = at <= text.upto[..., None]
        is_new = is_before & (at >= text.prompt_len[:, None, None])
        seen, made = _counts(text, is_before, logits), _counts(text, is_new, logits)
        divided = jnp.where(logits > 0, logits / repetition, logits * repetition)
        lowered = jnp.where(seen > 0, divided, logits)
        lowered = lowered - frequency * made - presence * jnp.sign(made)
        return jnp.where(is_asked, lowered, logits)

    return lax.cond(is_asked.any(), lower, lambda logits: logits, logits.astype(wide(logits.dtype)))


def _counts(text: Text, is_in: Array, logits: Array) -> Array:
    """Times each token is in a row's text, where is_in [B, T, S] -> [B, T, V]."""
    row = jnp.arange(logits.shape[0])[:, None, None]
    each = jnp.arange(logits.shape[1])[None, :, None]
    return jnp.zeros_like(logits).at[row, each, text.tokens[:, None]].add(
        is_in.astype(logits.dtype), mode="drop")
