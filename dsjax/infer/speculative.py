"""Speculative decoding with the model's own MTP modules (V3 report sec. 2.2.3 and 5.4.3).

A round drafts J tokens, one a module, reads them with the newest token in one pass of the main
model, and keeps a prefix. A draft d drawn from q is accepted with probability min(1, p(d) / q(d));
the first one refused is replaced by a draw from max(p - q, 0), normalized; after J acceptances one
more token comes from p. Each emitted token then has exactly the main model's distribution
(Leviathan et al., arXiv 2211.17192). Greedy is the same rule on one-hot distributions: equality.

Module k at position i joins hidden state k-1 of position i with token i+k and predicts token i+k+1.
With the newest token at n, hidden states up to n-1 are known, so all modules draft at position n-1,
module k reading the draft of module k-1. Module k's entries at positions above n-k were made with
drafts; the next round begins at most J+1 later and makes again the last 2J >= J+k positions, which
covers them. Nothing else of a cache is ever stale: positions beyond the newest token are written
again before a query looks at them.

One pass over J+1 tokens and J+1 passes over one round differently (matrix shapes differ), so greedy
drafted and plain texts are equal except where two logits, or two experts' affinities, tie to within
float32 rounding.

Axes: B batch, J drafts, W = 2J window, V vocabulary, D model, S cache positions.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax import Array

from dsjax.config.model import ModelConfig
from dsjax.infer.decode import Emitted, State, distributions, keys_at
from dsjax.infer.penalties import Text
from dsjax.infer.sample import draw, sample
from dsjax.layers.backend import Backend
from dsjax.model import mtp, transformer
from dsjax.model.transformer import TransformerParams


def speculative_round(p: TransformerParams, state: State, cfg: ModelConfig, backend: Backend,
                      is_text: Array | None = None) -> tuple[State, Emitted]:
    """Draft, verify in one pass, keep a prefix and one token more; every row by itself.

    Rows of which `is_text` [B] is true go through a text that is there: its tokens stand in for
    the drafts, and all are accepted.
    """
    depth = len(state.mtp)
    row = jnp.arange(state.tokens.shape[0])[:, None]
    keys = keys_at(state.keys, state.newest + 1)
    draft_keys, verify_keys = jax.vmap(jax.random.split, out_axes=1)(keys)
    state, drafts = draft(p, state, draft_keys, cfg, backend, is_text)

    positions = state.newest[:, None] + jnp.arange(depth + 1, dtype=jnp.int32)[None]
    tokens = state.tokens[row, positions]
    x, cache = transformer.hidden_cached(p, tokens, positions, state.cache, cfg, backend)
    text = Text(state.tokens, state.prompt_len, positions)
    logits, targets = distributions(p, x, text, state.sampling)
    accepted, extra = jax.vmap(verify)(verify_keys, targets, drafts, tokens[:, 1:])
    if is_text is not None:
        accepted = jnp.where(is_text, depth, accepted)

    kept = jnp.pad(tokens[:, 1:], ((0, 0), (0, 1)))
    is_extra = jnp.arange(depth + 1, dtype=jnp.int32)[None] == accepted[:, None]
    emitted = Emitted(jnp.where(is_extra, extra[:, None], kept), accepted + 1, logits)
    window = accepted[:, None] + 1 + jnp.arange(2 * depth, dtype=jnp.int32)[None]
    state = dataclasses.replace(
        state,
        tokens=state.tokens.at[row, positions + 1].set(emitted.tokens),
        newest=state.newest + accepted + 1,
        cache=cache,
        recent=jnp.concatenate([state.recent, x], axis=1)[row, window],
    )
    return state, emitted


def draft(p: TransformerParams, state: State, keys: Array, cfg: ModelConfig, backend: Backend,
          is_text: Array | None = None) -> tuple[State, Array]:
    """Write J drafted tokens after each row's newest; returns their distributions [B, J, V].

    keys [B]; rows of which `is_text` [B] is true keep the tokens that they have.
    """
    assert p.mtp is not None, "drafting needs MTP parameters"
    depth, max_len = len(state.mtp), state.tokens.shape[1]
    row = jnp.arange(state.tokens.shape[0])
    window = state.newest[:, None] - 2 * depth + jnp.arange(2 * depth, dtype=jnp.int32)[None]
    positions = jnp.where(window < 0, max_len, window)  # before the row: out of range, so dropped
    previous, tokens, drafts, pasts = state.recent, state.tokens, [], []
    for k in range(1, depth + 1):
        embedded = transformer.embed(p, tokens[row[:, None], jnp.maximum(window + k, 0)], backend)
        previous, past = mtp.hidden_cached(
            mtp.module(p.mtp, k - 1), previous, embedded, positions, state.mtp[k - 1], cfg, backend
        )
        # nothing is known before a text's first token: every token is as likely a draft
        previous = jnp.where(state.newest[:, None, None] > 0, previous, 0.0)
        text = Text(tokens, state.prompt_len, state.newest[:, None] + k - 1)
        drafts.append(distributions(p, previous[:, -1:], text, state.sampling)[1][:, 0])
        drafted = sample(jax.vmap(jax.random.fold_in, (0, None))(keys, k), drafts[-1],
                         state.sampling)
        if is_text is not None:
            drafted = jnp.where(is_text, tokens[row, state.newest + k], drafted)
        tokens = tokens.at[row, state.newest + k].set(drafted)
        pasts.append(past)
    state = dataclasses.replace(state, tokens=tokens, mtp=tuple(pasts))
    return state, jnp.stack(drafts, axis=1)


def verify(key: Array, targets: Array, drafts: Array, tokens: Array) -> tuple[Array, Array]:
    """Accept a prefix of drafted tokens and choose the one that follows, for one row.

    targets [J+1, V] and drafts [J, V] are the distributions p and q, tokens [J] were drawn from q.
    Returns the number accepted [] and the following token []. A draft whose p or q is NaN is
    refused; what follows then comes from p, and is NONE where that is NaN.
    """
    accept_key, extra_key = jax.random.split(key)
    depth = tokens.shape[0]
    at = jnp.arange(depth)
    uniform = jax.random.uniform(accept_key, (depth,), targets.dtype)
    is_accepted = uniform * drafts[at, tokens] < targets[at, tokens]
    accepted = jnp.cumprod(is_accepted.astype(jnp.int32)).sum(dtype=jnp.int32)
    target = targets[accepted]
    excess = jnp.maximum(target - jnp.pad(drafts, ((0, 1), (0, 0)))[accepted], 0.0)
    has_excess = excess.max() >= jnp.finfo(excess.dtype).smallest_normal
    rest = jnp.where(has_excess, excess, target)  # p = q up to rounding leaves none
    return accepted, draw(extra_key, rest)
