"""The main model: embedding, leading dense layers, mixture layers, final norm, head (V3 sec. 2.1).

Layers of equal kind are stacked and scanned. Axes: B batch, T time, D model, L layers, E experts,
G groups, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array, lax

from dsjax import params
from dsjax.config.model import ModelConfig
from dsjax.layers.backend import Backend, single
from dsjax.layers.cache import Cache
from dsjax.layers.router import RouterStats
from dsjax.model import block as blocks
from dsjax.model.block import BlockParams, Kept
from dsjax.model.mtp import MTPParams, mtp_specs
from dsjax.numerics.wide import wide
from dsjax.ops import rope
from dsjax.ops.norm import rms_norm
from dsjax.params import spec


@struct.dataclass
class TransformerParams:
    """Everything a released checkpoint holds."""

    embed: Array  # [V, D]
    dense: BlockParams | None  # stacked over the leading dense layers
    moe: BlockParams | None  # stacked over the mixture layers
    norm: Array  # [D]
    head: Array  # [D, V]
    mtp: MTPParams | None  # stacked over depths


@struct.dataclass
class Hidden:
    """What the layers made of a batch."""

    x: Array  # [B, T, D], after the final norm
    stats: RouterStats | None  # leaves lead with [L] over mixture layers
    dense_kept: Kept | None  # of the tokens, for a cache; leaves lead with [L]; None unless asked
    moe_kept: Kept | None  # for


def specs(cfg: ModelConfig) -> TransformerParams:
    """Describe every parameter of a model; nothing is allocated."""
    dense = moe = None
    if cfg.dense_layers:
        dense = params.stack(blocks.block_specs(cfg, is_moe=False), cfg.dense_layers)
    if cfg.moe_layers:
        moe = params.stack(blocks.block_specs(cfg, is_moe=True), cfg.moe_layers)
    return TransformerParams(
        embed=spec((cfg.vocab, cfg.d_model), ("vocab", "embed")),
        dense=dense,
        moe=moe,
        norm=spec((cfg.d_model,), (None,), "ones"),
        head=spec((cfg.d_model, cfg.vocab), ("embed", "vocab")),
        mtp=mtp_specs(cfg) if cfg.mtp_depth else None,
    )


def init(cfg: ModelConfig, key: Array) -> TransformerParams:
    """Draw the start values of a model."""
    return params.init(specs(cfg), key, cfg.init_std)


def hidden(p: TransformerParams, tokens: Array, segments: Array, cfg: ModelConfig,
           backend: Backend, *, is_kept: bool = False) -> Hidden:
    """Run every layer over whole rows. tokens, segments [B, T] int32 (segment 0 is padding)."""
    angles = rope.angles(cfg.rope, blocks.rope_dim(cfg), jnp.arange(tokens.shape[1]))

    def layer(p: BlockParams, x: Array, segments: Array) -> tuple[Array, Any, Kept | None]:
        mix = blocks.expanded(angles, segments, cfg, backend)
        x, stats, kept = blocks.block(p, x, mix, segments != 0, cfg, backend)
        return x, stats, kept if is_kept else None

    layer = backend.remat(layer)

    def body(x: Array, p: BlockParams) -> tuple[Array, Any]:
        x, stats, kept = backend.interleave(layer, p, x, segments)
        return x, (stats, kept)

    x, unroll = embed(p, tokens, backend), backend.unroll
    stats = dense_kept = moe_kept = None
    if p.dense is not None:
        x, (_, dense_kept) = lax.scan(body, x, p.dense, unroll=min(unroll, cfg.dense_layers))
    if p.moe is not None:
        x, (stats, moe_kept) = lax.scan(body, x, p.moe, unroll=min(unroll, cfg.moe_layers))
    return Hidden(rms_norm(x, p.norm, cfg.norm_eps), stats, dense_kept, moe_kept)


def embed(p: TransformerParams, tokens: Array, backend: Backend) -> Array:
    """Look tokens up. tokens [B, T] -> [B, T, D] in the backend's dtype."""
    x = p.embed.at[tokens].get(mode="clip").astype(backend.dtype)
    return backend.constrain(x, ("batch", None, None))


def head(p: TransformerParams, x: Array) -> Array:
    """Multiply normalized hidden states by the head, in float32. x [..., D] -> [..., V]."""
    return jnp.matmul(x.astype(wide(x.dtype)), p.head.astype(wide(x.dtype)))


def logits(p: TransformerParams, tokens: Array, cfg: ModelConfig, segments: Array | None = None,
           backend: Backend | None = None) -> Array:
    """The model as a function of tokens. tokens [B, T] int32 -> logits [B, T, V] float32."""
    segments = jnp.ones_like(tokens) if segments is None else segments
    return head(p, hidden(p, tokens, segments, cfg, backend or single()).x)


@struct.dataclass
class ModelCache:
    """The past of every layer; leaves lead with [L]."""

    dense: Cache | None
    moe: Cache | None


def empty_cache(cfg: ModelConfig, batch: int, length: int, backend: Backend) -> ModelCache:
    """Make the caches of `batch` rows of `length` positions, before their first tokens."""

    def stacked(layers: int) -> Cache | None:
        one = blocks.empty_cache(cfg, batch, length, backend)
        if not layers:
            return None
        return jax.tree.map(lambda a: jnp.broadcast_to(a, (layers, *a.shape)), one)

    return ModelCache(stacked(cfg.dense_layers), stacked(cfg.moe_layers))


def make_cache(read: Hidden, length: int, backend: Backend) -> ModelCache:
    """Make the caches of rows of `length` positions whose first tokens `hidden` has read."""

    def stacked(kept: Kept | None) -> Cache | None:
        return None if kept is None else jax.vmap(lambda k: backend.make_cache(k, length))(kept)

    return ModelCache(stacked(read.dense_kept), stacked(read.moe_kept))


def hidden_cached(p: TransformerParams, tokens: Array, positions: Array, cache: ModelCache,
                  cfg: ModelConfig, backend: Backend) -> tuple[Array, ModelCache]:
    """Run new tokens against the cache. tokens, positions [B, T] -> [B, T, D] after the norm.

    Tokens are written at their positions; each looks at every position up to its own.
    """
    x = embed(p, tokens, backend)
    angles = rope.angles(cfg.rope, blocks.rope_dim(cfg), positions)
    is_real = jnp.ones(tokens.shape, bool)

    def body(x: Array, layer: tuple[BlockParams, Cache]) -> tuple[Array, Cache]:
        mix = blocks.cached(angles, positions, layer[1], cfg, backend)
        x, _, new = blocks.block(layer[0], x, mix, is_real, cfg, backend)
        return x, new

    dense, moe = cache.dense, cache.moe
    if p.dense is not None:
        assert dense is not None, "a model with dense layers has their cache"
        x, dense = lax.scan(body, x, (p.dense, dense))
    if p.moe is not None:
        assert moe is not None, "a model with mixture layers has their cache"
        x, moe = lax.scan(body, x, (p.moe, moe))
    return rms_norm(x, p.norm, cfg.norm_eps), ModelCache(dense, moe)
