"""Grouped-query and standard multi-head attention, peers of MLA for ablations (V2 report App. D).

Axes: B batch, T query, S key, D model, H query heads, N channels of a head. This file's own letter:
Y key-value heads; query head h reads key-value head h // (H / Y). All channels are rotated.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from dsjax.config.model import GQAConfig, ModelConfig
from dsjax.layers.backend import Backend
from dsjax.numerics.precision import Weight
from dsjax.numerics.wide import wide
from dsjax.ops.attention import NEVER
from dsjax.ops.rope import Angles, rotate, softmax_scale
from dsjax.params import spec


@struct.dataclass
class GQAParams:
    """Four projections."""

    w_q: Array | Weight  # [D, H, N]
    w_k: Array | Weight  # [D, Y, N]
    w_v: Array | Weight  # [D, Y, N]
    w_o: Array | Weight  # [H, N, D]


@struct.dataclass
class KVCache:
    """Keys (rotated) and values of the past."""

    k: Array  # [B, S, Y, N]
    v: Array  # [B, S, Y, N]


def gqa_specs(d_model: int, cfg: GQAConfig) -> GQAParams:
    """Describe one grouped-query attention."""
    kv = spec((d_model, cfg.kv_heads, cfg.head_dim), ("embed", "head", None), is_product=True)
    return GQAParams(
        w_q=spec((d_model, cfg.heads, cfg.head_dim), ("embed", "head", None), is_product=True),
        w_k=kv,
        w_v=kv,
        w_o=spec((cfg.heads, cfg.head_dim, d_model), ("head", None, "embed"), is_product=True,
                 contract_dims=2),
    )


def gqa(p: GQAParams, x: Array, angles: Angles, segments: Array, cfg: ModelConfig,
        backend: Backend) -> tuple[Array, KVCache]:
    """Causal attention within segments. x [B, T, D], angles [T, N/2], segments [B, T]."""
    a = _gqa_config(cfg)
    q, past = _queries_and_past(p, x, angles, backend)
    repeats = a.heads // a.kv_heads
    k, v = (jnp.repeat(part, repeats, axis=2).swapaxes(1, 2) for part in (past.k, past.v))
    scale = softmax_scale(cfg.rope, a.head_dim)
    out = backend.attend(q.swapaxes(1, 2), k, v, segments, scale)
    return backend.o_proj(out.swapaxes(1, 2), p.w_o, contract=2), past


def gqa_cached(p: GQAParams, x: Array, angles: Angles, positions: Array, cache: KVCache,
               cfg: ModelConfig, backend: Backend) -> tuple[Array, KVCache]:
    """Decode new tokens against the cache. x [B, T, D], angles [B, T, N/2], positions [B, T]."""
    a = _gqa_config(cfg)
    q, new = _queries_and_past(p, x, angles, backend)
    row = jnp.arange(x.shape[0])[:, None]
    cache = jax.tree.map(
        lambda old, part: old.at[row, positions].set(part.astype(old.dtype)), cache, new
    )
    grouped = q.reshape(*q.shape[:2], a.kv_heads, -1, a.head_dim)
    k, v = cache.k.astype(x.dtype), cache.v.astype(x.dtype)
    scores = jnp.einsum("btygn,bsyn->bygts", grouped, k, preferred_element_type=wide(x.dtype))
    at = jnp.arange(cache.k.shape[1], dtype=positions.dtype)
    is_past = at[None, None] <= positions[..., None]
    scores = jnp.where(is_past[:, None, None], scores * softmax_scale(cfg.rope, a.head_dim), NEVER)
    weights = jax.nn.softmax(scores, axis=-1).astype(x.dtype)
    out = jnp.einsum("bygts,bsyn->btygn", weights, v).reshape(q.shape)
    return backend.o_proj(out, p.w_o, contract=2), cache


def _queries_and_past(p: GQAParams, x: Array, angles: Angles,
                      backend: Backend) -> tuple[Array, KVCache]:
    by = Angles(angles.cos[..., None, :], angles.sin[..., None, :])
    q, k = rotate(backend.linear(x, p.w_q), by), rotate(backend.linear(x, p.w_k), by)
    return q, KVCache(k, backend.linear(x, p.w_v))


def empty_cache(cfg: ModelConfig, batch: int, length: int, dtype: jnp.dtype) -> KVCache:
    """One layer's cache before the first token."""
    a = _gqa_config(cfg)
    shape = (batch, length, a.kv_heads, a.head_dim)
    return KVCache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))


def _gqa_config(cfg: ModelConfig) -> GQAConfig:
    assert isinstance(cfg.attention, GQAConfig), "gqa needs a GQAConfig"
    return cfg.attention
