"""Multi-head latent attention (V3 report sec. 2.1.1, eqs. 1-11).

Keys and values are made from one latent per token; a decoder caches the normalized latent and the
rotated shared key, nothing else. Training and prefill expand them; decoding absorbs the expansion
into queries and outputs, which is multi-query attention over the latent with 576 / 512 channels.

Axes: B batch, T query, S key, D model, H heads, Q query latent, C key-value latent, N nope, R rope,
U value.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array
from jax.ad_checkpoint import checkpoint_name

from dsjax.config.model import MLAConfig, ModelConfig
from dsjax.layers.backend import Backend
from dsjax.numerics.precision import Matrix, value
from dsjax.numerics.wide import wide
from dsjax.ops.attention import NEVER
from dsjax.ops.norm import rms_norm
from dsjax.ops.rope import Angles, rotate, softmax_scale
from dsjax.params import spec


@struct.dataclass
class MLAParams:
    """The report's matrices, joined where one product reads the same input."""

    w_dq: Matrix | None  # [D, Q]  W^DQ; None without query compression
    q_norm: Array | None  # [Q]
    w_uq: Matrix  # [Q, H, N+R]  W^UQ and W^QR; [D, H, N+R] without compression
    w_dkv: Matrix  # [D, C+R]  W^DKV and W^KR
    kv_norm: Array  # [C]
    w_ukv: Matrix  # [C, H, N+U]  W^UK and W^UV
    w_o: Matrix  # [H, U, D]  W^O


@struct.dataclass
class LatentCache:
    """What decoding keeps of the past: (d_c + d_h^R) numbers a token and layer."""

    latent: Array  # [B, S, C], normalized
    k_rope: Array  # [B, S, R], rotated


def mla_specs(d_model: int, cfg: MLAConfig) -> MLAParams:
    """Describe one latent attention."""
    q_in = d_model if cfg.q_rank is None else cfg.q_rank
    q_axis = "embed" if cfg.q_rank is None else "rank"
    w_dq = q_norm = None
    if cfg.q_rank is not None:
        w_dq = spec((d_model, cfg.q_rank), ("embed", "rank"), is_product=True)
        q_norm = spec((cfg.q_rank,), (None,), "ones")
    return MLAParams(
        w_dq=w_dq,
        q_norm=q_norm,
        w_uq=spec((q_in, cfg.heads, cfg.qk_dim), (q_axis, "head", None), is_product=True),
        w_dkv=spec((d_model, cfg.kv_rank + cfg.rope_dim), ("embed", "rank"), is_product=True),
        kv_norm=spec((cfg.kv_rank,), (None,), "ones"),
        w_ukv=spec((cfg.kv_rank, cfg.heads, cfg.nope_dim + cfg.value_dim), ("rank", "head", None),
                   is_product=True),
        w_o=spec((cfg.heads, cfg.value_dim, d_model), ("head", None, "embed"), is_product=True,
                 contract_dims=2),
    )


def mla(p: MLAParams, x: Array, angles: Angles, segments: Array, cfg: ModelConfig,
        backend: Backend) -> tuple[Array, LatentCache]:
    """The expanded form, for training and prefill. x [B, T, D], angles [T, R/2], segments [B, T].

    Returns [B, T, D] and what a cache would hold of these tokens.
    """
    a = _mla_config(cfg)
    q_nope, q_rope = queries(p, x, angles, cfg, backend)
    past = latents(p, x, angles, cfg, backend)
    kv = backend.linear(past.latent, p.w_ukv)
    kv = kv.reshape(*x.shape[:2], a.heads, -1)  # already, but where it rests in 8 bits
    k_nope, v = kv[..., : a.nope_dim], kv[..., a.nope_dim :]
    k_rope = jnp.broadcast_to(past.k_rope[:, :, None], (*k_nope.shape[:3], a.rope_dim))
    q = jnp.concatenate([q_nope, q_rope], axis=-1).swapaxes(1, 2)
    k = jnp.concatenate([k_nope, k_rope], axis=-1).swapaxes(1, 2)
    scale = softmax_scale(cfg.rope, a.qk_dim)
    out = backend.attend(q, k, v.swapaxes(1, 2), segments, scale)
    return backend.o_proj(out.swapaxes(1, 2), p.w_o, contract=2), past


def mla_absorbed(p: MLAParams, x: Array, angles: Angles, positions: Array, cache: LatentCache,
                 cfg: ModelConfig, backend: Backend) -> tuple[Array, LatentCache]:
    """The absorbed form, for decoding. x [B, T, D], angles [B, T, R/2], positions [B, T].

    Writes the new tokens at their positions of the cache and looks at positions up to each one's
    own; `W^UK` moves to the queries and `W^UV` to the outputs.
    """
    a = _mla_config(cfg)
    q_nope, q_rope = queries(p, x, angles, cfg, backend)
    new = latents(p, x, angles, cfg, backend)
    row = jnp.arange(x.shape[0])[:, None]
    cache = jax.tree.map(
        lambda old, part: old.at[row, positions].set(part.astype(old.dtype)), cache, new
    )
    w_ukv = value(p.w_ukv).astype(x.dtype).reshape(a.kv_rank, a.heads, -1)
    w_uk, w_uv = w_ukv[..., : a.nope_dim], w_ukv[..., a.nope_dim :]
    latent, k_rope = cache.latent.astype(x.dtype), cache.k_rope.astype(x.dtype)
    q_latent = jnp.einsum("bthn,chn->bthc", q_nope, w_uk)
    dtype = wide(x.dtype)
    scores = jnp.einsum("bthc,bsc->bhts", q_latent, latent, preferred_element_type=dtype)
    scores += jnp.einsum("bthr,bsr->bhts", q_rope, k_rope, preferred_element_type=dtype)
    scores *= softmax_scale(cfg.rope, a.qk_dim)
    at = jnp.arange(cache.latent.shape[1], dtype=positions.dtype)
    is_past = at[None, None] <= positions[..., None]
    weights = jax.nn.softmax(jnp.where(is_past[:, None], scores, NEVER), axis=-1)
    out = jnp.einsum("bhts,bsc->bthc", weights.astype(x.dtype), latent)
    heads = jnp.einsum("bthc,chu->bthu", out, w_uv)
    return backend.o_proj(heads, p.w_o, contract=2), cache


def queries(p: MLAParams, x: Array, angles: Angles, cfg: ModelConfig,
            backend: Backend) -> tuple[Array, Array]:
    """Make q without and with position: [B, T, H, N], [B, T, H, R] (eqs. 6-9)."""
    a = _mla_config(cfg)
    if p.w_dq is not None:
        c_q = checkpoint_name(backend.linear(x, p.w_dq), "latents")
        assert p.q_norm is not None, "query compression has a norm"
        x = rms_norm(c_q, p.q_norm, a.latent_norm_eps)
    q = backend.linear(x, p.w_uq).reshape(*x.shape[:2], a.heads, a.qk_dim)
    by = Angles(angles.cos[..., None, :], angles.sin[..., None, :])
    return q[..., : a.nope_dim], rotate(q[..., a.nope_dim :], by)


def latents(p: MLAParams, x: Array, angles: Angles, cfg: ModelConfig,
            backend: Backend) -> LatentCache:
    """Make the normalized latent and the shared rotated key (eqs. 1 and 3)."""
    a = _mla_config(cfg)
    c = checkpoint_name(backend.linear(x, p.w_dkv), "latents")
    latent = rms_norm(c[..., : a.kv_rank], p.kv_norm, a.latent_norm_eps)
    return LatentCache(latent, rotate(c[..., a.kv_rank :], angles))


def empty_cache(cfg: ModelConfig, batch: int, length: int, dtype: jnp.dtype) -> LatentCache:
    """One layer's cache before the first token."""
    a = _mla_config(cfg)
    return LatentCache(
        jnp.zeros((batch, length, a.kv_rank), dtype), jnp.zeros((batch, length, a.rope_dim), dtype)
    )


def _mla_config(cfg: ModelConfig) -> MLAConfig:
    assert isinstance(cfg.attention, MLAConfig), "mla needs an MLAConfig"
    return cfg.attention
