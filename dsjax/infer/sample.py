"""From logits to a token: greedy, temperature and nucleus sampling as one distribution.

Everything that chooses tokens goes through `probs`, so that speculation verifies drafts against
exactly the distribution that plain decoding draws from. Greedy is the one-hot distribution of the
best token (the lowest id among equals). What a row asks for is a number in an array, not a part of
the program: another temperature compiles nothing, and greedy and sampled rows share a batch. Only
the kind of work is compiled: a batch that is greedy throughout has no draws in its program, and one
that keeps all tokens no sort.

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
    top_k: int | None = None
    """Keep so many of the likeliest tokens, before `top_p`; None keeps all."""
    min_p: float = 0.0
    """Keep tokens that have at least this share of the likeliest one's probability."""
    presence_penalty: float = 0.0
    """Taken from the logit of every token that the continuation holds."""
    frequency_penalty: float = 0.0
    """Taken from a token's logit as many times as the continuation holds it."""
    repetition_penalty: float = 1.0
    """Logits of tokens of the prompt and continuation are divided by it, negative ones multiplied.
    """

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
        if self.top_k is not None and self.top_k < 1:
            raise UserError(f"top_k={self.top_k} leaves no token to choose; use at least 1, or "
                            "leave it out to keep all")
        if not 0 <= self.min_p <= 1:
            raise UserError(f"min_p={self.min_p} is not a share of the likeliest token's "
                            "probability; use 0 to 1")
        for name in ("presence_penalty", "frequency_penalty"):
            if not -MOST_PENALTY <= getattr(self, name) <= MOST_PENALTY:
                raise UserError(f"{name}={getattr(self, name)} is out of range; use "
                                f"-{MOST_PENALTY} to {MOST_PENALTY}")
        if not 0 < self.repetition_penalty <= MOST_PENALTY:
            raise UserError(f"repetition_penalty={self.repetition_penalty} is out of range; use "
                            f"above 0 up to {MOST_PENALTY}, 1 for none")

    @property
    def is_cut(self) -> bool:
        """True if some tokens of a softmax are left out."""
        return bool(self.temperature) and (
            self.top_p < 1 or self.top_k is not None or self.min_p > 0)

    @property
    def is_penalized(self) -> bool:
        """True if logits depend on the tokens before."""
        return (self.presence_penalty, self.frequency_penalty, self.repetition_penalty) != (0, 0, 1)


MOST_PENALTY = 100


Work = Literal["greedy", "softmax", "cut", "any"]
"""The most that a row of a batch asks for; each can do what those before it do. `any` also has
penalties, and looks at each batch as it runs: work that no row asks for is passed over."""


@struct.dataclass
class SamplingParams:
    """Numbers by which each row's distribution is made of its logits."""

    temperature: Array  # [B] times `scale`; 0 is greedy
    scale: Array  # [B] a power of two that keeps logits / temperature within their dtype's range
    top_p: Array  # [B]; 1 keeps all
    top_k: Array  # [B] int32
    min_p: Array  # [B]
    penalties: Array  # [B, 3] presence, frequency, repetition
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
        is_cut = any(row.is_cut for row in rows)
        work = "cut" if is_cut else "softmax" if sampled else "greedy"
        work = "any" if any(row.is_penalized for row in rows) else work
    penalties = [(row.presence_penalty, row.frequency_penalty, row.repetition_penalty)
                 for row in rows]
    return SamplingParams(
        temperature=jnp.asarray(temperature, dtype),
        scale=jnp.asarray(scale, dtype),
        top_p=jnp.asarray([row.top_p for row in rows], dtype),
        top_k=_limits([row.top_k for row in rows]),
        min_p=jnp.asarray([row.min_p for row in rows], dtype),
        penalties=jnp.asarray(np.reshape(penalties, (len(rows), 3)), dtype),
        vocab=_limits([row.vocab for row in rows]),
        work=work,
    )


def _limits(limits: Sequence[int | None]) -> Array:
    most = np.iinfo(np.int32).max
    return jnp.asarray([most if n is None else min(n, most) for n in limits], jnp.int32)


def probs(logits: Array, sampling: SamplingParams) -> Array:
    """Distributions of the next token: one-hot where greedy, else softmax cut to the nucleus.

    logits [B, ..., V]. Returns float32 [B, ..., V] (float64 for float64) that sums to one. A token
    at -inf has none of the mass and those at +inf share all of it. Rows with a NaN, or with nothing
    above -inf, have no distribution: all of theirs is NaN.
    """
    logits = logits.astype(wide(logits.dtype))
    of_row = jax.tree.map(lambda a: a.reshape(-1, *(1,) * (logits.ndim - 1)), sampling)
    ids = lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)
    logits = jnp.where(ids < of_row.vocab, logits, -jnp.inf)
    best = logits.max(axis=-1, keepdims=True)
    exists = ~jnp.isnan(logits).any(axis=-1, keepdims=True) & (best > -jnp.inf)
    made = jax.nn.one_hot(jnp.argmax(logits, axis=-1), logits.shape[-1], dtype=logits.dtype)
    if sampling.work != "greedy":
        def soft_of(logits: Array) -> Array:
            return _softmax(logits, best, of_row)

        if sampling.work == "any":
            is_drawn = (of_row.temperature > 0).any()
            soft = lax.cond(is_drawn, soft_of, lambda logits: made, logits)
        else:
            soft = soft_of(logits)
        is_cut = (of_row.top_p < 1) | (of_row.top_k < logits.shape[-1]) | (of_row.min_p > 0)
        is_cut &= of_row.temperature > 0

        def cut_rows(soft: Array) -> Array:
            return jnp.where(is_cut, cut(soft, of_row.top_p, of_row.top_k, of_row.min_p), soft)

        if sampling.work == "cut":
            soft = cut_rows(soft)
        elif sampling.work == "any":
            soft = lax.cond(is_cut.any(), cut_rows, lambda soft: soft, soft)
        made = jnp.where(of_row.temperature == 0, made, soft)
    return jnp.where(exists, made, jnp.nan)


def _softmax(logits: Array, best: Array, of_row: SamplingParams) -> Array:
    """Softmax of logits / temperature, for every temperature above 0. best [..., 1] the largest.

    The largest is taken away before the division: logits / temperature may be infinite, or, in
    compiled code, above what its largest was rounded to. Both are first multiplied by a power of
    two, which rounds nothing, so that no difference that counts is infinite.
    """
    scale, temperature = (a.astype(logits.dtype) for a in (of_row.scale, of_row.temperature))
    below = jnp.where(logits == best, 0.0, logits * scale - best * scale)  # also where infinite
    mass = jnp.where(below == -jnp.inf, 0.0, jnp.exp(below / temperature))
    return mass / mass.sum(axis=-1, keepdims=True)


def cut(probs: Array, top_p: ArrayLike, top_k: ArrayLike, min_p: ArrayLike) -> Array:
    """Keep the likeliest tokens, and normalize: `top_k` of them, of which the nucleus, above min_p.

    probs [..., V], the others [..., 1] or numbers. The nucleus is the smallest set of the likeliest
    with `top_p` of the mass that top_k left. The token that crosses top_p is kept, so at least one
    is; equals are taken by lowest id. Mass is summed in float32, so a set that reaches top_p to
    within rounding may keep one token more.
    """
    flat = probs.reshape(-1, probs.shape[-1])
    top_p, top_k, min_p = (
        jnp.broadcast_to(jnp.asarray(a), (*probs.shape[:-1], 1)).reshape(-1, 1)
        for a in (top_p, top_k, min_p))
    order = jnp.argsort(-flat, axis=-1, stable=True)
    ranked = jnp.take_along_axis(flat, order, axis=-1)
    rank, top_k = jnp.arange(flat.shape[1], dtype=jnp.int32)[None], top_k.astype(jnp.int32)
    mass = jnp.cumsum(jnp.where(rank < top_k, ranked, 0.0), axis=-1)
    mass_before = jnp.pad(mass[:, :-1], ((0, 0), (1, 0)))
    whole = jnp.where(top_k < flat.shape[1], mass[:, -1:], 1.0)
    is_kept = (mass_before < top_p.astype(flat.dtype) * whole) | (top_p >= 1)
    is_kept &= (rank < top_k) & (ranked >= min_p.astype(flat.dtype) * ranked[:, :1])
    is_kept |= rank == 0  # whatever the numbers round to
    row = jnp.arange(flat.shape[0])[:, None]
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

    def drawn(probs: Array) -> Array:
        return jnp.where(sampling.temperature == 0, best, jax.vmap(draw)(keys, probs))

    if sampling.work == "any":
        return lax.cond((sampling.temperature > 0).any(), drawn, lambda probs: best, probs)
    return drawn(probs)
