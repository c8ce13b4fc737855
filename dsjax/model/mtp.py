"""Multi-token prediction: J modules, each one more block, sharing embedding and head (V3 sec. 2.2).

Module k at position i joins the embedding of token i+k with the hidden state of module k-1 (the
main model's, after its final norm, for k = 1) and predicts token i+k+1. The order of the joined
halves is that of the released weights: embedding first (the report's eq. 21 prints hidden first;
DeepSeek-V3 issue 712). Which hidden state is recycled is not stated in the report; released-weight
engines that use the normalized one report the higher acceptance (vLLM PR 47448), so it is ours.

Axes: B batch, T time, D model, J depth.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from dsjax import params
from dsjax.config.model import ModelConfig
from dsjax.layers.backend import Backend
from dsjax.layers.cache import Cache
from dsjax.layers.router import RouterStats
from dsjax.model import block as blocks
from dsjax.model.block import BlockParams, Kept
from dsjax.ops import rope
from dsjax.ops.norm import rms_norm
from dsjax.params import spec

Embed = Callable[[Array], Array]
"""Tokens [B, T] -> the main model's embeddings [B, T, D]."""


@struct.dataclass
class MTPParams:
    """One module's own parameters; stacked over depth, every leaf leads with J."""

    embed_norm: Array  # [D]
    hidden_norm: Array  # [D]
    w_proj: Array  # [2D, D]  M_k; rows 0..D-1 read the embedding
    block: BlockParams
    norm: Array  # [D]  before the shared head


def mtp_specs(cfg: ModelConfig) -> MTPParams:
    """Describe the J stacked modules."""
    d = cfg.d_model
    norm = spec((d,), (None,), "ones", role="norm")
    one = MTPParams(
        embed_norm=norm,
        hidden_norm=norm,
        # bfloat16 in the released FP8 checkpoint
        w_proj=spec((2 * d, d), ("embed", None), role="mtp_proj"),
        block=blocks.block_specs(cfg, is_moe=cfg.moe is not None),
        norm=norm,
    )
    return params.stack(one, cfg.mtp_depth, "depth")


def module(p: MTPParams, depth: int) -> MTPParams:
    """Take module `depth` (from 0) out of the stack."""
    return jax.tree.map(lambda a: a[depth], p)


def join(p: MTPParams, previous: Array, embedded: Array, cfg: ModelConfig,
         backend: Backend) -> Array:
    """Eq. 21: normalize both, join, project. previous, embedded [B, T, D] -> [B, T, D]."""
    both = jnp.concatenate(
        [
            rms_norm(embedded, p.embed_norm, cfg.norm_eps),
            rms_norm(previous, p.hidden_norm, cfg.norm_eps),
        ],
        axis=-1,
    )
    return backend.linear_high(both, p.w_proj)


@struct.dataclass
class Depth:
    """Output of one module over whole rows."""

    x: Array  # [B, T, D], after its norm; position i predicts token i+k+1
    stats: RouterStats | None
    kept: Kept  # of the tokens, for a cache


def chain(p: MTPParams | None, x: Array, tokens: Array, segments: Array, embed: Embed,
          cfg: ModelConfig, backend: Backend) -> Iterator[Depth]:
    """Run the modules over whole rows, one after another, each on the hidden states of the last.

    x [B, T, D] of the main model, after its norm; tokens and segments [B, T] that it read. A
    position is real at depth k when token i+k is in its document.
    """
    length = tokens.shape[1]
    for k in range(1, cfg.mtp_depth + 1):
        assert p is not None, "mtp_depth > 0 has MTP parameters"
        is_real = (segments != 0) & (shift(segments, k, length) == segments)
        embedded = embed(shift(tokens, k, length))
        made = hidden(module(p, k - 1), x, embedded, segments, is_real, cfg, backend)
        x = made.x
        yield made


def shift(a: Array, by: int, length: int) -> Array:
    """Elements i+by for i < length, 0 past the end. a [B, T] or [B, T+1] -> [B, length]."""
    part = a[:, by : by + length]
    return jnp.pad(part, ((0, 0), (0, length - part.shape[1])))


def hidden(p: MTPParams, previous: Array, embedded: Array, segments: Array, is_real: Array,
           cfg: ModelConfig, backend: Backend) -> Depth:
    """Run one module over whole rows.

    previous [B, T, D] of depth k-1; embedded [B, T, D] of tokens i+k; segments [B, T] and is_real
    [B, T] (a position is real when token i+k exists) of the T positions.
    """
    angles = rope.angles(cfg.rope, blocks.rope_dim(cfg), jnp.arange(previous.shape[1]))
    attend = blocks.prefill(angles, segments, cfg, backend)

    def body(p: MTPParams, previous: Array, embedded: Array) -> Depth:
        x = join(p, previous, embedded, cfg, backend)
        x, stats, kept = blocks.block(p.block, x, attend, is_real, cfg, backend)
        return Depth(rms_norm(x, p.norm, cfg.norm_eps), stats, kept)

    return backend.remat(body, is_scanned=False)(p, previous, embedded)


def hidden_cached(p: MTPParams, previous: Array, embedded: Array, positions: Array, cache: Cache,
                  cfg: ModelConfig, backend: Backend) -> tuple[Array, Cache]:
    """Run one module on new positions against its own cache, for drafting.

    previous, embedded [B, T, D]; positions [B, T]. Returns normalized hidden states.
    """
    angles = rope.angles(cfg.rope, blocks.rope_dim(cfg), positions)
    attend = blocks.decode(angles, positions, cache, cfg, backend)
    x = join(p, previous, embedded, cfg, backend)
    is_real = jnp.ones(positions.shape, bool)
    x, _, cache = blocks.block(p.block, x, attend, is_real, cfg, backend)
    return rms_norm(x, p.norm, cfg.norm_eps), cache
