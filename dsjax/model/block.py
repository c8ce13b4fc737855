"""One pre-norm layer: attention, then a feed-forward, each added to the residual stream.

There is one forward pass in the house: training, prefill, decoding, reinforcement learning and the
pipeline all call `block`, with the attention form they need as `attend`.

Axes: B batch, T time, D model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from flax import struct
from jax import Array
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike

from dsjax.config.model import MLAConfig, ModelConfig
from dsjax.layers import gqa, mla, moe, swiglu
from dsjax.layers.backend import Backend
from dsjax.layers.cache import Cache
from dsjax.layers.gqa import GQAParams, KeysValues
from dsjax.layers.mla import Latents, MLAParams
from dsjax.layers.moe import MoEParams
from dsjax.layers.router import RouterStats
from dsjax.layers.swiglu import SwiGLUParams
from dsjax.ops.norm import rms_norm
from dsjax.ops.rope import Angles
from dsjax.params import spec, with_role

Kept = Latents | KeysValues
Attention = Callable[[Any, Array], tuple[Array, Any]]
"""Attention in one of its forms: parameters, x [B, T, D] -> [B, T, D], and what it keeps of the
tokens or the cache they were appended to."""


@struct.dataclass
class BlockParams:
    """One layer; stacked layers carry a leading L axis on every leaf."""

    attn_norm: Array  # [D]
    attn: MLAParams | GQAParams
    ffn_norm: Array  # [D]
    ffn: SwiGLUParams | MoEParams


def block_specs(cfg: ModelConfig, is_moe: bool) -> BlockParams:
    """Describe one layer with a dense feed-forward or a mixture of experts."""
    norm = spec((cfg.d_model,), (None,), "ones", role="norm")
    if isinstance(cfg.attention, MLAConfig):
        attn: Any = mla.mla_specs(cfg.d_model, cfg.attention)
    else:
        attn = gqa.gqa_specs(cfg.d_model, cfg.attention)
    if is_moe:
        assert cfg.moe is not None, "a mixture needs a MoEConfig"
        ffn: Any = moe.moe_specs(cfg.d_model, cfg.moe)
    else:
        ffn = swiglu.swiglu_specs(cfg.d_model, cfg.dense_dim)
    attn = with_role(attn, "attention")
    return BlockParams(attn_norm=norm, attn=attn, ffn_norm=norm, ffn=ffn)


def block(p: BlockParams, x: Array, attend: Attention, is_real: Array, cfg: ModelConfig,
          backend: Backend, routes: Array | None = None,
          ) -> tuple[Array, RouterStats | None, Any]:
    """Attention as `attend` does it, then the layer's feed-forward. x [B, T, D], is_real [B, T].

    `routes` [B, T, K], if given, are each token's experts. Returns the new residual stream, the
    router's statistics (None for a dense layer) and what `attend` cached.
    """
    x, cache = attention(p, x, attend, cfg)
    x, stats = feed_forward(p, x, is_real, cfg, backend, routes)
    return x, stats, cache


def attention(p: BlockParams, x: Array, attend: Attention, cfg: ModelConfig) -> tuple[Array, Any]:
    """The layer's first half: x [B, T, D] with attention added, and what `attend` cached."""
    with jax.named_scope("attention"):
        mixed, cache = attend(p.attn, rms_norm(x, p.attn_norm, cfg.norm_eps))
        return checkpoint_name(x + mixed, "residual"), cache


def feed_forward(p: BlockParams, x: Array, is_real: Array, cfg: ModelConfig, backend: Backend,
                 routes: Array | None = None) -> tuple[Array, RouterStats | None]:
    """The layer's second half: x [B, T, D] with the feed-forward added, and router statistics."""
    y, stats = rms_norm(x, p.ffn_norm, cfg.norm_eps), None
    if isinstance(p.ffn, MoEParams):
        assert cfg.moe is not None, "a mixture needs a MoEConfig"
        y, stats = moe.moe(p.ffn, y, is_real, cfg.moe, backend, routes)
    else:
        y = swiglu.swiglu(p.ffn, y, backend)
    return backend.layout.constrain(x + y, ("batch", None, None)), stats


def prefill(angles: Angles, segments: Array, cfg: ModelConfig, backend: Backend) -> Attention:
    """Attention over the rows themselves, for training and prefill."""
    form = mla.mla if isinstance(cfg.attention, MLAConfig) else gqa.gqa
    return lambda p, x: form(p, x, angles, segments, cfg, backend)


def decode(angles: Angles, positions: Array, cache: Cache, cfg: ModelConfig,
           backend: Backend) -> Attention:
    """Attention of new tokens over a cache, for decoding."""
    form: Any = mla.mla_absorbed if isinstance(cfg.attention, MLAConfig) else gqa.gqa_cached
    return lambda p, x: form(p, x, angles, positions, cache, cfg, backend)


def empty_cache(cfg: ModelConfig, batch: int, length: int, backend: Backend) -> Cache:
    """One layer's cache before the first token."""
    return backend.make_cache(none_kept(cfg, batch, backend.dtype), length)


def none_kept(cfg: ModelConfig, batch: int, dtype: DTypeLike) -> Kept:
    """An attention's record of no tokens, leaves [B, 0, ...]."""
    form = mla if isinstance(cfg.attention, MLAConfig) else gqa
    return form.none_kept(cfg, batch, dtype)


def rope_dim(cfg: ModelConfig) -> int:
    """Rotated channels of a head."""
    a = cfg.attention
    return a.rope_dim if isinstance(a, MLAConfig) else a.head_dim
