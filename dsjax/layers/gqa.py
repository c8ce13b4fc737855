"""Grouped-query and standard multi-head attention, peers of MLA for ablations (V2 report App. D).

Axes: B batch, T query, S key, D model, H query heads, N channels of a head. This file's own letter:
Y key-value heads; query head h reads key-value head h // (H / Y). All channels are rotated.
"""

from __future__ import annotations

import jax.numpy as jnp
from flax import struct
from jax import Array
from jax.typing import DTypeLike

from dsjax.config.model import GQAConfig, ModelConfig
from dsjax.layers.backend import Backend
from dsjax.layers.cache import Cache
from dsjax.numerics.precision import Weight
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
class KeysValues:
    """Keys (rotated) and values: all that decoding keeps of tokens."""

    k: Array  # [B, S, Y, N]
    v: Array  # [B, S, Y, N]

    @property
    def keys(self) -> tuple[Array]:
        """One part."""
        return (self.k,)

    @property
    def values(self) -> Array:
        """[B, S, Y, N]."""
        return self.v


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
        backend: Backend) -> tuple[Array, KeysValues]:
    """Causal attention within segments. x [B, T, D], angles [T, N/2], segments [B, T]."""
    a = _gqa_config(cfg)
    q, kept = _queries_and_kept(p, x, angles, backend)
    repeats = a.heads // a.kv_heads
    k, v = (jnp.repeat(part, repeats, axis=2).swapaxes(1, 2) for part in (kept.k, kept.v))
    scale = softmax_scale(cfg.rope, a.head_dim)
    out = backend.attend(q.swapaxes(1, 2), k, v, segments, scale)
    return backend.o_proj(out.swapaxes(1, 2), p.w_o), kept


def gqa_cached(p: GQAParams, x: Array, angles: Angles, positions: Array, cache: Cache,
               cfg: ModelConfig, backend: Backend) -> tuple[Array, Cache]:
    """Decode new tokens against the cache. x [B, T, D], angles [B, T, N/2], positions [B, T]."""
    a = _gqa_config(cfg)
    q, new = _queries_and_kept(p, x, angles, backend)
    cache = cache.append(new, positions)
    out = backend.attend_cached((q,), cache, positions, softmax_scale(cfg.rope, a.head_dim))
    return backend.o_proj(out, p.w_o), cache


def _queries_and_kept(p: GQAParams, x: Array, angles: Angles,
                      backend: Backend) -> tuple[Array, KeysValues]:
    by = Angles(angles.cos[..., None, :], angles.sin[..., None, :])
    q, k = rotate(backend.linear(x, p.w_q), by), rotate(backend.linear(x, p.w_k), by)
    return q, KeysValues(k, backend.linear(x, p.w_v))


def none_kept(cfg: ModelConfig, batch: int, dtype: DTypeLike) -> KeysValues:
    """Keys and values of no tokens, with which a cache begins."""
    a = _gqa_config(cfg)
    shape = (batch, 0, a.kv_heads, a.head_dim)
    return KeysValues(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))


def _gqa_config(cfg: ModelConfig) -> GQAConfig:
    assert isinstance(cfg.attention, GQAConfig), "gqa needs a GQAConfig"
    return cfg.attention
