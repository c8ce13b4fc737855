"""Tokens that sampling could have chosen, replayed when their log-probabilities are taken again.

An engine that samples from a nucleus reports probabilities that sum to one over it. A trainer that
takes a softmax over the whole vocabulary sees each of them smaller, by the mass that was kept, and
every ratio is off by that factor. The V3.2 report (sec. 3.1, "keep sampling mask") gives the
trainer the engine's support.

Axes: V vocabulary.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from dsjax.infer import sample
from dsjax.infer.sample import SamplingParams
from dsjax.numerics.wide import wide


def support(logits: Array, sampling: SamplingParams) -> Array:
    """Mark tokens that `dsjax.infer.sample` draws with a probability above 0.

    logits [B, ..., V], the engine's -> [B, ..., V] bool.
    """
    return sample.probs(logits, sampling) > 0


def logits_within(logits: Array, support: Array, temperature: float) -> Array:
    """Return logits / temperature within the support, -inf outside, [..., V] each.

    Their log-softmax is what the engine sampled from; tokens outside have a gradient of exactly 0.
    """
    return jnp.where(support, logits.astype(wide(logits.dtype)) / temperature, -jnp.inf)


def logprobs_within(logits: Array, support: Array, ids: Array, temperature: float) -> Array:
    """Log-probabilities of sampled tokens, renormalized over the support.

    logits, support [..., V], ids [...] int32 -> [...]. A token outside its support has -inf, which
    an engine never reports of a token that it sampled.
    """
    found = jax.nn.log_softmax(logits_within(logits, support, temperature), axis=-1)
    return jnp.take_along_axis(found, ids[..., None], axis=-1)[..., 0]
