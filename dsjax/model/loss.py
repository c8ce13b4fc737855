"""Every loss of the reports, as sums that do not depend on how a batch is cut.

V3 report sec. 2.1.2 (balance) and 2.2 (prediction of several tokens), V2 report sec. 2.2.3.

A step's loss is a sum over its rows divided by totals of the whole step's batch, known before any
gradient is taken (`count`). So microbatches, devices and padding never change it: gradients of
parts add up to the gradient of the whole.

Axes: B rows, T time, D model, L mixture layers, E experts, G groups, J MTP depth, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from dsjax.config.loss import LossConfig
from dsjax.config.model import ModelConfig
from dsjax.layers.backend import Backend
from dsjax.layers.router import RouterStats
from dsjax.model import mtp, transformer
from dsjax.model.transformer import TransformerParams
from dsjax.ops.cross_entropy import cross_entropy


@struct.dataclass
class Batch:
    """Rows of tokens with one more than the model reads: position i's target is token i+1."""

    tokens: Array  # [B, T+1] int32
    segments: Array  # [B, T+1] int32, document within the row, 0 padding
    weights: Array  # [B, T+1] float32, how much each token counts as a target


def from_rows(rows: dict[str, Any]) -> Batch:
    """Rows as the host reads them, by name; NumPy arrays move to the device with the step."""
    return Batch(**rows)


@struct.dataclass
class Totals:
    """What losses are divided by, summed over the whole step's batch."""

    targets: Array  # [] sum of the next-token targets' weights
    rows: Array  # [] rows that hold a real token


@struct.dataclass
class LossParts:
    """Sums over a part of a batch, to be added over parts; nats and hits are weighted."""

    nats: Array  # [] next-token
    hits: Array  # [] next tokens guessed
    mtp_nats: Array  # [J]
    mtp_hits: Array  # [J]
    mtp_targets: Array  # [J] sum of weights
    balance: Array  # [] all balance losses, weighted and divided by totals
    loads: Array  # [L + J, E] assignments of real tokens; [0, 0] without experts
    extra_rounds: Array  # [] of the experts' exchange over devices, all layers


def target_weights(batch: Batch, ahead: int) -> Array:
    """Weight of token i+ahead as position i's target, [B, T]; 0 past its document or the row."""
    length = batch.tokens.shape[1] - 1
    segments = batch.segments[:, :length]
    later = shift(batch.segments, ahead, length)
    is_target = (later == segments) & (segments != 0)
    return jnp.where(is_target, shift(batch.weights, ahead, length), 0.0)


def shift(a: Array, by: int, length: int) -> Array:
    """Elements i+by for i < length, 0 past the end. a [B, T] or [B, T+1] -> [B, length]."""
    part = a[:, by : by + length]
    return jnp.pad(part, ((0, 0), (0, length - part.shape[1])))


def count(batch: Batch) -> Totals:
    """Totals of a batch: what its losses are divided by."""
    is_real_row = (batch.segments[:, :-1] != 0).any(axis=1)
    return Totals(
        targets=jnp.maximum(target_weights(batch, 1).sum(), 1e-9),
        rows=jnp.maximum(is_real_row.sum().astype(batch.weights.dtype), 1.0),
    )


def loss(p: TransformerParams, batch: Batch, totals: Totals, mtp_weight: Array | float,
         cfg: ModelConfig, losses: LossConfig, backend: Backend) -> tuple[Array, LossParts]:
    """The step's loss for one part of its batch, and the sums it was made from.

    next token + lambda / J sum_k MTP_k + balance losses; MTP losses are divided by the next-token
    targets, which is the report's 1 / T (eq. 24).
    """
    length = batch.tokens.shape[1] - 1
    tokens, segments = batch.tokens[:, :length], batch.segments[:, :length]
    main = transformer.hidden(p, tokens, segments, cfg, backend)
    return after_layers(p, main.x, main.stats, batch, totals, mtp_weight, cfg, losses, backend)


def after_layers(p: TransformerParams, x: Array, stats: RouterStats | None, batch: Batch,
                 totals: Totals, mtp_weight: Array | float, cfg: ModelConfig, losses: LossConfig,
                 backend: Backend) -> tuple[Array, LossParts]:
    """As `loss`, from what the layers made of the batch: x [B, T, D] after the final norm.

    Reads embedding, head and MTP modules of `p`; `stats` are those of the layers that count here.
    """
    length = x.shape[1]
    tokens, segments = batch.tokens[:, :length], batch.segments[:, :length]
    nats, hits = _nats(p, x, batch, 1, backend)
    joined_stats = [stats] if stats is not None else []
    mtp_parts = []
    previous = x
    for depth in range(cfg.mtp_depth):
        ahead = depth + 1
        embedded = transformer.embed(p, shift(tokens, ahead, length), backend)
        is_real = (segments != 0) & (shift(segments, ahead, length) == segments)
        assert p.mtp is not None, "mtp_depth > 0 has MTP parameters"
        previous, mtp_stats, _ = mtp.hidden(mtp.module(p.mtp, depth), previous, embedded, segments,
                                            is_real, cfg, backend)
        mtp_parts.append((*_nats(p, previous, batch, ahead + 1, backend),
                          target_weights(batch, ahead + 1).sum()))
        if mtp_stats is not None:
            joined_stats.append(jax.tree.map(lambda a: a[None], mtp_stats))
    mtp_nats, mtp_hits, mtp_targets = _columns(mtp_parts)
    joined = None
    if joined_stats:
        joined = jax.tree.map(lambda *parts: jnp.concatenate(parts), *joined_stats)
    is_real_row = (segments != 0).any(axis=1)
    balance = balance_sum(joined, is_real_row, cfg, losses) / totals.rows
    total = nats / totals.targets + balance
    if cfg.mtp_depth:
        total += mtp_weight / cfg.mtp_depth * mtp_nats.sum() / totals.targets
    loads, extra_rounds = jnp.zeros((0, 0)), jnp.zeros(())
    if joined is not None:
        loads, extra_rounds = joined.loads.sum(axis=1), jnp.sum(joined.extra_rounds)
    return total, LossParts(nats, hits, mtp_nats, mtp_hits, mtp_targets, balance, loads,
                            extra_rounds)


def _columns(rows: list[tuple[Array, Array, Array]]) -> tuple[Array, Array, Array]:
    """J rows of three scalars -> three [J] arrays."""
    if not rows:
        none = jnp.zeros((0,))
        return none, none, none
    first, second, third = zip(*rows, strict=True)
    return jnp.stack(first), jnp.stack(second), jnp.stack(third)


def _nats(p: TransformerParams, x: Array, batch: Batch, ahead: int,
          backend: Backend) -> tuple[Array, Array]:
    """Weighted nats and hits of predicting token i+ahead at position i."""
    def sums(head: Array, x: Array, targets: Array, weights: Array) -> tuple[Array, Array]:
        return cross_entropy(x, head, targets, weights, backend.loss_chunk, backend.loss_dtype)

    targets = shift(batch.tokens, ahead, x.shape[1])
    return backend.add_up(sums, p.head, x, targets, target_weights(batch, ahead))


def balance_sum(stats: RouterStats | None, is_real_row: Array, cfg: ModelConfig,
                losses: LossConfig) -> Array:
    """All balance losses, weighted, summed over rows and mixture layers."""
    total = jnp.zeros(())
    if stats is None or cfg.moe is None:
        return total
    real = is_real_row.astype(stats.affinity.dtype)[None]
    terms = [
        (losses.balance, sequence_balance),
        (losses.expert_balance, expert_balance),
        (losses.device_balance, device_balance),
        (losses.communication_balance, communication_balance),
    ]
    for weight, term in terms:
        if weight:
            total += weight * (term(stats, cfg) * real).sum()
    return total


def sequence_balance(stats: RouterStats, cfg: ModelConfig) -> Array:
    """V3 eq. 17: sum_i f_i P_i per row, f from the K best unbiased affinities. [L, B]."""
    return (stats.frequency * stats.affinity).sum(-1)


def _chosen_frequency(stats: RouterStats, cfg: ModelConfig) -> Array:
    """f_i of V2 eq. 25: choices as made, normalized so that balance is 1. [L, B, E]."""
    assert cfg.moe is not None, "balance losses need experts"
    tokens = jnp.maximum(stats.loads.sum(-1, keepdims=True) / cfg.moe.experts_per_token, 1.0)
    return stats.loads / tokens * (cfg.moe.experts / cfg.moe.experts_per_token)


def expert_balance(stats: RouterStats, cfg: ModelConfig) -> Array:
    """V2 eq. 23: sum_i f_i P_i per row. [L, B]."""
    return (_chosen_frequency(stats, cfg) * stats.affinity).sum(-1)


def device_balance(stats: RouterStats, cfg: ModelConfig) -> Array:
    """V2 eq. 26: sum over devices of mean f times summed P; a device is an expert group. [L, B]."""
    assert cfg.moe is not None, "balance losses need experts"
    frequency = _by_group(_chosen_frequency(stats, cfg), cfg.moe.groups).mean(-1)
    return (frequency * _by_group(stats.affinity, cfg.moe.groups).sum(-1)).sum(-1)


def communication_balance(stats: RouterStats, cfg: ModelConfig) -> Array:
    """V2 eq. 29: sum over devices of f'' P'', f'' = D / M times the share sent there. [L, B]."""
    assert cfg.moe is not None, "balance losses need experts"
    sent = stats.group_share * (cfg.moe.groups / cfg.moe.groups_per_token)
    return (sent * _by_group(stats.affinity, cfg.moe.groups).sum(-1)).sum(-1)


def _by_group(a: Array, groups: int) -> Array:
    return a.reshape(*a.shape[:-1], groups, -1)


def bias_step(loads: Array, speed: Array | float) -> Array:
    """What the balance rule adds to a selection bias: speed * sign(mean load - load). [..., E].

    Called once an optimizer step with the loads of the whole batch (V3 report sec. 2.1.2).
    """
    return speed * jnp.sign(loads.mean(axis=-1, keepdims=True) - loads)


def max_violation(loads: Array) -> Array:
    """MaxVio = (largest load - mean) / mean, per layer (arXiv 2408.15664). loads [L, E] -> [L].

    0 where nothing was routed.
    """
    mean = loads.mean(axis=-1)
    return (loads.max(axis=-1) - mean) / jnp.maximum(mean, 1e-9)
