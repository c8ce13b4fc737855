"""Multi-head latent attention (V3 report sec. 2.1.1, eqs. 1-11).

Keys and values are made from one latent per token; a decoder caches the normalized latent and the
rotated shared key, nothing else. Training and prefill expand them; decoding absorbs the expansion
into queries and outputs, which is multi-query attention over the latent with 576 / 512 channels.

Axes: B batch, T query, S key, D model, H heads, Q query latent, C key-value latent, N nope, R rope,
U value.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import struct
from jax import Array
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike

from dsjax.config.model import MLAConfig, ModelConfig
from dsjax.layers.backend import Backend
from dsjax.layers.cache import Cache
from dsjax.layers.paged import Form
from dsjax.numerics.precision import Matrix, value
from dsjax.numerics.scaled import dequantize, quantize
from dsjax.numerics.wide import exact
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
class Latents:
    """All that decoding keeps of tokens: (d_c + d_h^R) numbers a token and layer.

    The absorbed form reads them as one key-value head, whose values are the latent part of its
    keys.
    """

    latent: Array  # [B, S, C], normalized
    k_rope: Array  # [B, S, R], rotated

    @property
    def keys(self) -> tuple[Array, Array]:
        """[B, S, 1, C] and [B, S, 1, R]."""
        return self.latent[:, :, None], self.k_rope[:, :, None]

    @property
    def values(self) -> Array:
        """[B, S, 1, C]."""
        return self.latent[:, :, None]


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
        backend: Backend) -> tuple[Array, Latents]:
    """The expanded form, for training and prefill. x [B, T, D], angles [T, R/2], segments [B, T].

    Returns [B, T, D] and what a cache would hold of these tokens.
    """
    a = _mla_config(cfg)
    q_nope, q_rope = queries(p, x, angles, cfg, backend)
    kept = latents(p, x, angles, cfg, backend)
    kv = backend.linear(kept.latent, p.w_ukv)
    kv = kv.reshape(*x.shape[:2], a.heads, -1)  # already, but where it rests in 8 bits
    k_nope, v = kv[..., : a.nope_dim], kv[..., a.nope_dim :]
    k_rope = jnp.broadcast_to(kept.k_rope[:, :, None], (*k_nope.shape[:3], a.rope_dim))
    q = jnp.concatenate([q_nope, q_rope], axis=-1).swapaxes(1, 2)
    k = jnp.concatenate([k_nope, k_rope], axis=-1).swapaxes(1, 2)
    scale = softmax_scale(cfg.rope, a.qk_dim)
    out = backend.attend(q, k, v.swapaxes(1, 2), segments, scale)
    return backend.o_proj(out.swapaxes(1, 2), p.w_o), kept


def mla_absorbed(p: MLAParams, x: Array, angles: Angles, positions: Array, cache: Cache,
                 cfg: ModelConfig, backend: Backend) -> tuple[Array, Cache]:
    """The absorbed form, for decoding. x [B, T, D], angles [B, T, R/2], positions [B, T].

    The new tokens are appended to the cache, and each looks at positions up to its own. `W^UK`
    moves to the queries and `W^UV` to the outputs.
    """
    a = _mla_config(cfg)
    q_nope, q_rope = queries(p, x, angles, cfg, backend)
    cache = cache.append(latents(p, x, angles, cfg, backend), positions)
    w_ukv = value(backend.layout.gather(p.w_ukv)).astype(x.dtype).reshape(a.kv_rank, a.heads, -1)
    w_uk, w_uv = w_ukv[..., : a.nope_dim], w_ukv[..., a.nope_dim :]
    q_latent = jnp.einsum("bthn,chn->bthc", q_nope, w_uk, precision=exact(x.dtype))
    scale = softmax_scale(cfg.rope, a.qk_dim)
    out = backend.attend_cached((q_latent, q_rope), cache, positions, scale)
    heads = jnp.einsum("bthc,chu->bthu", out, w_uv, precision=exact(x.dtype))
    return backend.o_proj(heads, p.w_o), cache


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
            backend: Backend) -> Latents:
    """Make the normalized latent and the shared rotated key (eqs. 1 and 3)."""
    a = _mla_config(cfg)
    c = checkpoint_name(backend.linear(x, p.w_dkv), "latents")
    latent = rms_norm(c[..., : a.kv_rank], p.kv_norm, a.latent_norm_eps)
    return Latents(latent, rotate(c[..., a.kv_rank :], angles))


def _in_fp8(kept: Latents) -> Latents:
    latent: Any = quantize(kept.latent)
    return Latents(latent, kept.k_rope.astype(jnp.bfloat16))


def _from_fp8(held: Latents, dtype: DTypeLike) -> Latents:
    latent: Any = held.latent
    return Latents(dequantize(latent, dtype), held.k_rope.astype(dtype))


FP8_PAGES = Form(_in_fp8, _from_fp8)
"""The latent in 8 bits with a float32 scale for 128 channels, the key in bfloat16: 656 bytes a
token and layer at V3's shapes (the cache of V3.2)."""


def none_kept(cfg: ModelConfig, batch: int, dtype: DTypeLike) -> Latents:
    """Latents of no tokens, with which a cache begins."""
    a = _mla_config(cfg)
    return Latents(*(jnp.zeros((batch, 0, size), dtype) for size in (a.kv_rank, a.rope_dim)))


def _mla_config(cfg: ModelConfig) -> MLAConfig:
    assert isinstance(cfg.attention, MLAConfig), "mla needs an MLAConfig"
    return cfg.attention
