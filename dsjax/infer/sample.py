"""From logits to a token: greedy, temperature and nucleus sampling as one distribution.

Everything that chooses tokens goes through `probs`, so that speculation verifies drafts against
exactly the distribution that plain decoding draws from. Greedy is the one-hot distribution of the
best token (the lowest id among equals). What a row asks for is a number in an array, not a part of
the program: another temperature compiles nothing, and greedy and sampled rows share a batch. Only
the kind of work is compiled: a batch that is greedy throughout has no draws in its program, and one
without a top_p below 1 no sort.

Axes: B rows, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array, lax
from jax.typing import ArrayLike

from dsjax.config.fields import MOST, seed_in_range, shown
from dsjax.errors import UserError
from dsjax.numerics.wide import wide


@dataclass(frozen=True)
class Sampling:
    """A request: how the tokens of a row are chosen, and when it stops."""

    temperature: float = 1.0
    """Logits are divided by it; 0 is greedy."""
    top_p: float = 1.0
    """Keep the smallest set of likeliest tokens whose mass reaches this; 1 keeps all."""
    max_new_tokens: int = 128
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
        if self.max_new_tokens < 1:
            raise UserError(f"max_new_tokens={self.max_new_tokens} generates nothing; use at least "
                            "1")
        if self.max_new_tokens > MOST:
            raise UserError(f"max_new_tokens={shown(self.max_new_tokens)} is more than any machine "
                            f"has room for; use at most {MOST}")
        seed_in_range(self.seed, "seed=")
        if self.vocab is not None and self.vocab < 1:
            raise UserError(f"vocab={self.vocab} leaves no token to choose; use at least 1")


Work = Literal["greedy", "softmax", "nucleus"]
"""The most that a row of a batch asks for; each can do what those before it do."""


@struct.dataclass
class SamplingParams:
    """Numbers by which each row's distribution is made of its logits."""

    temperature: Array  # [B] times `scale`; 0 is greedy
    scale: Array  # [B] a power of two that keeps logits / temperature within their dtype's range
    top_p: Array  # [B]; 1 keeps all
    vocab: Array  # [B] int32
    work: Work = struct.field(pytree_node=False)  # compiled into programs


def sampling_params(rows: Sequence[Sampling], work: Work | None = None) -> SamplingParams:
    """Make arrays of what rows ask for; `work` is the most that any of them does, unless given.

    Every temperature of float64 is told apart in float32: at 1 and above its exponent, up to 100 of
    it, goes into `scale`. One that float32 still cannot hold is the nearest one that it can; tokens
    whose logits differ by less than float32's smallest number are then as equals.
    """
    dtype = np.dtype(jnp.result_type(float))
    info = jnp.finfo(dtype)
    scale, temperature = np.ones(len(rows)), np.zeros(len(rows))
    for i, row in enumerate(rows):
        if row.temperature:
            scale[i] = 2.0 ** -min(max(math.frexp(row.temperature)[1], 0), 100)
            temperature[i] = row.temperature * scale[i]
            temperature[i] = min(max(temperature[i], float(info.smallest_normal)), float(info.max))
    sampled = [row for row in rows if row.temperature]
    if work is None:
        is_cut = any(row.top_p < 1 for row in sampled)
        work = "nucleus" if is_cut else "softmax" if sampled else "greedy"
    no_limit = np.iinfo(np.int32).max
    return SamplingParams(
        temperature=jnp.asarray(temperature, dtype),
        scale=jnp.asarray(scale, dtype),
        top_p=jnp.asarray([row.top_p for row in rows], dtype),
        vocab=jnp.asarray([no_limit if row.vocab is None else min(row.vocab, no_limit)
                           for row in rows], jnp.int32),
        work=work,
    )


def probs(logits: Array, sampling: SamplingParams) -> Array:
    """Distributions of the next token: one-hot where greedy, else softmax cut to the nucleus.

    logits [B, ..., V]. Returns float32 [B, ..., V] (float64 for float64) that sums to one. A token
    at -inf has none of the mass and those at +inf share all of it. Rows with a NaN, or with nothing
    above -inf, have no distribution: all of theirs is NaN.
    """
    logits = logits.astype(wide(logits.dtype))
    by_row = jax.tree.map(lambda a: a.reshape(-1, *(1,) * (logits.ndim - 1)), sampling)
    ids = lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)
    logits = jnp.where(ids < by_row.vocab, logits, -jnp.inf)
    best = logits.max(axis=-1, keepdims=True)
    exists = ~jnp.isnan(logits).any(axis=-1, keepdims=True) & (best > -jnp.inf)
    made = jax.nn.one_hot(jnp.argmax(logits, axis=-1), logits.shape[-1], dtype=logits.dtype)
    if sampling.work != "greedy":
        soft = _softmax(logits, best, by_row)
        if sampling.work == "nucleus":
            soft = jnp.where(by_row.top_p < 1, nucleus(soft, by_row.top_p), soft)
        made = jnp.where(by_row.temperature == 0, made, soft)
    return jnp.where(exists, made, jnp.nan)


def _softmax(logits: Array, best: Array, by_row: SamplingParams) -> Array:
    """Softmax of logits / temperature, for every temperature above 0. best [..., 1] the largest.

    The largest is taken away before the division: logits / temperature may be infinite, or, in
    compiled code, above what its largest was rounded to. Both are first multiplied by a power of
    two, which rounds nothing, so that no difference that counts is infinite.
    """
    scale, temperature = (a.astype(logits.dtype) for a in (by_row.scale, by_row.temperature))
    below = jnp.where(logits == best, 0.0, logits * scale - best * scale)  # also where infinite
    mass = jnp.where(below == -jnp.inf, 0.0, jnp.exp(below / temperature))
    return mass / mass.sum(axis=-1, keepdims=True)


def nucleus(probs: Array, top_p: ArrayLike) -> Array:
    """Keep the smallest set of likeliest tokens with mass >= top_p, and normalize it.

    probs [..., V], top_p [..., 1]. The token that crosses top_p is kept, so at least one is; equals
    are taken by lowest id. Mass is summed in float32, so a set that reaches top_p to within
    rounding may keep one token more.
    """
    flat = probs.reshape(-1, probs.shape[-1])
    share = jnp.broadcast_to(top_p, (*probs.shape[:-1], 1)).reshape(-1, 1).astype(probs.dtype)
    order = jnp.argsort(-flat, axis=-1, stable=True)
    ranked = jnp.take_along_axis(flat, order, axis=-1)
    mass = jnp.cumsum(ranked, axis=-1)
    mass_before = jnp.pad(mass[:, :-1], ((0, 0), (1, 0)))
    is_first = jnp.arange(flat.shape[1])[None] == 0  # whatever top_p rounds to
    row = jnp.arange(flat.shape[0])[:, None]
    is_kept = is_first | (mass_before < share)
    kept = jnp.zeros_like(flat).at[row, order].set(jnp.where(is_kept, ranked, 0.0))
    return (kept / kept.sum(axis=-1, keepdims=True)).reshape(probs.shape)


NONE = -1
"""Chosen where there is no distribution; no program goes on from it, see `generate`."""


def draw(key: Array, probs: Array) -> Array:
    """Draw one token of each distribution [..., V] (a sum other than one is fine) -> [...] int32.

    A token of probability zero is never drawn; of NaN comes NONE.
    """
    drawn = jax.random.categorical(key, jnp.log(probs)).astype(jnp.int32)
    return jnp.where(jnp.isnan(probs).any(axis=-1), NONE, drawn)


def sample(keys: Array, probs: Array, sampling: SamplingParams) -> Array:
    """Choose one token a row, each by its own key. keys [B], probs [B, V] -> [B] int32.

    A greedy row takes the only token there is and reads no key. A row of NaN gives NONE.
    """
    best = jnp.argmax(probs, axis=-1).astype(jnp.int32)
    best = jnp.where(jnp.isnan(probs).any(axis=-1), NONE, best)
    if sampling.work == "greedy":
        return best
    return jnp.where(sampling.temperature == 0, best, jax.vmap(draw)(keys, probs))
