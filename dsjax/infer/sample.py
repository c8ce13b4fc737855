"""From logits to a token: greedy, temperature and nucleus sampling as one distribution.

Everything that chooses tokens goes through `probabilities`, so that speculation verifies drafts
against exactly the distribution that plain decoding draws from. Greedy is the one-hot distribution
of the best token (the lowest id among equals). Axis: V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array

from dsjax.config.fields import MOST, seed_in_range, shown
from dsjax.errors import UserError
from dsjax.numerics.wide import wide


@dataclass(frozen=True)
class Law:
    """How the distribution of the next token is made of logits; compiled into the program."""

    temperature: float = 1.0
    top_p: float = 1.0
    vocab: int | None = None


@dataclass(frozen=True)
class Sampling:
    """What to generate, and when to stop."""

    temperature: float = 1.0
    """Logits are divided by it; 0 is greedy."""
    top_p: float = 1.0
    """Keep the smallest set of likeliest tokens whose mass reaches this; 1 keeps all."""
    max_new: int = 128
    """Tokens to generate at most."""
    stop_ids: tuple[int, ...] = ()
    """Ids that end a row; the id itself is the row's last token."""
    seed: int = 0
    """Row r's token at position i depends on seed, r and i only."""
    vocab: int | None = None
    """Ids from here on are never chosen (a tokenizer smaller than the head); None allows all."""

    def __post_init__(self) -> None:
        """Refuse distributions that do not exist."""
        if not 0 <= self.temperature < math.inf:
            raise UserError(
                f"temperature={self.temperature} is not a number from 0 on; use 0 for greedy or a "
                "number above, as 0.8"
            )
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p={self.top_p} is not a share of the mass; use above 0 up to 1")
        if self.max_new < 1:
            raise UserError(f"max_new={self.max_new} generates nothing; use at least 1")
        if self.max_new > MOST:
            raise UserError(f"max_new={shown(self.max_new)} is more than any machine has room for; "
                            f"use at most {MOST}")
        seed_in_range(self.seed, "seed=")
        if self.vocab is not None and self.vocab < 1:
            raise UserError(f"vocab={self.vocab} leaves no token to choose; use at least 1")

    @property
    def law(self) -> Law:
        """The part that a compiled program depends on."""
        return Law(self.temperature, self.top_p, self.vocab)


def distribution(logits: Array, law: Law) -> Array:
    """The distribution a law makes of logits [..., V]; [..., V], sums to one, or NaN: no token."""
    if law.vocab is not None and law.vocab < logits.shape[-1]:
        logits = logits.at[..., law.vocab :].set(-jnp.inf)
    return probabilities(logits, law.temperature, law.top_p)


def probabilities(logits: Array, temperature: float, top_p: float) -> Array:
    """Greedy (temperature 0) as one-hot, else softmax of logits / temperature cut to the nucleus.

    logits [..., V]. Returns float32 [..., V] (float64 for float64). A token at -inf has none of the
    mass and those at +inf share all of it. Rows with a NaN, or with nothing above -inf, have no
    distribution: all of theirs is NaN.
    """
    logits = logits.astype(wide(logits.dtype))
    best = logits.max(axis=-1, keepdims=True)
    exists = ~jnp.isnan(logits).any(axis=-1, keepdims=True) & (best > -jnp.inf)
    if temperature == 0:
        shares = jax.nn.one_hot(jnp.argmax(logits, axis=-1), logits.shape[-1], dtype=logits.dtype)
    else:
        shares = _softmax(logits, best, temperature)
        shares = shares if top_p >= 1 else nucleus(shares, top_p)
    return jnp.where(exists, shares, jnp.nan)


def _softmax(logits: Array, best: Array, temperature: float) -> Array:
    """Softmax of logits / temperature, for every temperature above 0. best [..., 1] the largest.

    The largest is taken away before the division: logits / temperature may be infinite, or, in
    compiled code, above what its largest was rounded to. Both are first divided by a power of two,
    which rounds nothing, so that no difference that counts is infinite. A temperature that the
    dtype cannot hold is the nearest one that it can: tokens whose logits differ by less than the
    dtype's smallest number are then as equals.
    """
    info = jnp.finfo(logits.dtype)
    scale = 2.0 ** -min(max(math.frexp(temperature)[1], 0), 100)
    divisor = min(max(temperature * scale, float(info.smallest_normal)), float(info.max))
    below = jnp.where(logits == best, 0.0, logits * scale - best * scale)  # also where infinite
    mass = jnp.where(below == -jnp.inf, 0.0, jnp.exp(below / divisor))
    return mass / mass.sum(axis=-1, keepdims=True)


def nucleus(shares: Array, top_p: float) -> Array:
    """Keep the smallest set of likeliest tokens with mass >= top_p, and normalize it.

    shares [..., V]. The token that crosses top_p is kept, so at least one is; equals are taken by
    lowest id. Mass is summed in float32, so a set that reaches top_p to within rounding may keep
    one token more.
    """
    flat = shares.reshape(-1, shares.shape[-1])
    order = jnp.argsort(-flat, axis=-1, stable=True)
    ranked = jnp.take_along_axis(flat, order, axis=-1)
    mass = jnp.cumsum(ranked, axis=-1)
    mass_before = jnp.pad(mass[:, :-1], ((0, 0), (1, 0)))
    is_first = jnp.arange(flat.shape[1])[None] == 0  # whatever top_p rounds to
    row = jnp.arange(flat.shape[0])[:, None]
    is_kept = is_first | (mass_before < top_p)
    kept = jnp.zeros_like(flat).at[row, order].set(jnp.where(is_kept, ranked, 0.0))
    return (kept / kept.sum(axis=-1, keepdims=True)).reshape(shares.shape)


NONE = -1
"""Chosen where there is no distribution; no program goes on from it, see `generate`."""


def sample(key: Array, probabilities: Array) -> Array:
    """Draw one token of each distribution [..., V] (a sum other than one is fine) -> [...] int32.

    A token of probability zero is never drawn; of NaN comes NONE.
    """
    drawn = jax.random.categorical(key, jnp.log(probabilities)).astype(jnp.int32)
    return jnp.where(jnp.isnan(probabilities).any(axis=-1), NONE, drawn)


def choose(keys: Array, probabilities: Array, law: Law) -> Array:
    """Choose one token a row, each by its own key. keys [B], probabilities [B, V] -> [B] int32.

    Greedy takes the only token there is and reads no key. A row of NaN gives NONE.
    """
    if law.temperature == 0:
        best = jnp.argmax(probabilities, axis=-1).astype(jnp.int32)
        return jnp.where(jnp.isnan(probabilities).any(axis=-1), NONE, best)
    return jax.vmap(sample)(keys, probabilities)
