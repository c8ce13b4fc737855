"""Every loss of the reports, as sums that do not depend on how a batch is cut.

V3 report sec. 2.1.2 (balance) and 2.2 (prediction of several tokens), V2 report sec. 2.2.3.

A step's loss is a sum over its rows divided by totals of the whole step's batch, known before any
gradient is taken (`count`). So microbatches, devices and padding never change it: gradients of
parts add up to the gradient of the whole.

What a next token costs is a function of its log-probability (`ops.token_loss.TokenLoss`): a run of
another kind hands in another function, and the numbers that it reads travel in `Batch.extra`. MTP
modules learn to predict the tokens they are given, by cross-entropy, whatever the main loss is.

Axes: B rows, T time, D model, L mixture layers, E experts, G groups, J MTP depth, V vocabulary.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from dsjax.config.loss import LossConfig
from dsjax.config.model import ModelConfig
from dsjax.layers import router
from dsjax.layers.backend import Backend
from dsjax.layers.router import RouterStats
from dsjax.model import mtp, transformer
from dsjax.model.mtp import shift
from dsjax.model.transformer import TransformerParams
from dsjax.ops import token_loss as token_losses
from dsjax.ops.token_loss import Sums, Targets, TokenLoss, cross_entropy


@struct.dataclass
class Batch:
    """Rows of tokens with one more than the model reads: position i's target is token i+1."""

    tokens: Array  # [B, T+1] int32
    segments: Array  # [B, T+1] int32, document within the row, 0 padding
    weights: Array  # [B, T+1] float32, how much each token counts as a target
    extra: dict[str, Array] = struct.field(default_factory=dict)
    """[B, T+1] each: what a token loss reads of every token, by name (its advantage, say)."""
    routes: Array | None = None
    """[B, L, T+1, K]: experts that tokens take in mixture layers, if not the choice of routers."""


def from_rows(rows: dict[str, Any]) -> Batch:
    """Rows as the host reads them, by name; NumPy arrays move to the device with the step."""
    own = {name: rows[name] for name in ("tokens", "segments", "weights", "routes") if name in rows}
    return Batch(**own, extra={name: a for name, a in rows.items() if name not in own})


@struct.dataclass
class Totals:
    """Divisors of the losses, summed over the whole step's batch."""

    targets: Array  # [] sum of the next-token targets' weights
    rows: Array  # [] rows that hold a real token


@struct.dataclass
class Objective:
    """Objective of a step: next-token loss + lambda / J sum_k MTP_k + balance losses.

    MTP losses are divided by the next-token targets, which is the report's 1 / T (eq. 24).
    """

    totals: Totals
    mtp_weight: Array | float  # lambda of this step
    balance: LossConfig = struct.field(pytree_node=False)  # weights of the balance losses
    token_loss: TokenLoss = struct.field(pytree_node=False, default=cross_entropy)


@struct.dataclass
class LossParts:
    """Sums over a part of a batch, to be added over parts.

    The arrays [1 + J] are weighted sums over targets: of the main model, then of each MTP depth.
    """

    nll: Array  # [1 + J] negative log-likelihood, in nats
    correct: Array  # [1 + J] targets that are the likeliest token
    targets: Array  # [1 + J]
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


def targets_of(batch: Batch, ahead: int) -> Targets:
    """Return the targets: at position i token i+ahead, its weight and what else a loss reads."""
    length = batch.tokens.shape[1] - 1
    ids, extra = jax.tree.map(lambda a: shift(a, ahead, length), (batch.tokens, batch.extra))
    return Targets(ids, target_weights(batch, ahead), extra)


def count(batch: Batch) -> Totals:
    """Return the totals of a batch: what its losses are divided by."""
    is_real_row = (batch.segments[:, :-1] != 0).any(axis=1)
    return Totals(
        targets=jnp.maximum(target_weights(batch, 1).sum(), 1e-9),
        rows=jnp.maximum(is_real_row.sum().astype(batch.weights.dtype), 1.0),
    )


def token_logprobs(p: TransformerParams, tokens: Array, segments: Array, cfg: ModelConfig,
                   backend: Backend, routes: Array | None = None) -> Array:
    """Log-probability of each token given those before it in its document, in float32.

    tokens, segments [B, T] -> [B, T]; 0 for the first token of a document and for padding. `routes`
    [L, B, T, K] are the experts that each token takes, if not the router's choice.
    """
    if routes is not None:
        routes = routes[:, :, :-1]
    x = transformer.hidden(p, tokens[:, :-1], segments[:, :-1], cfg, backend, routes=routes).x
    found, _ = token_losses.logprobs(x, p.head, tokens[:, 1:], backend.loss_chunk,
                                     backend.loss_dtype)
    is_target = (segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] != 0)
    return jnp.pad(jnp.where(is_target, found, 0.0), ((0, 0), (1, 0)))


def loss(p: TransformerParams, batch: Batch, objective: Objective, cfg: ModelConfig,
         backend: Backend) -> tuple[Array, LossParts]:
    """The step's loss for one part of its batch, and the sums it was made from."""
    length = batch.tokens.shape[1] - 1
    tokens, segments = batch.tokens[:, :length], batch.segments[:, :length]
    routes = None if batch.routes is None else jnp.moveaxis(batch.routes[:, :, :length], 1, 0)
    main = transformer.hidden(p, tokens, segments, cfg, backend, routes=routes)
    return after_layers(p, main.x, main.stats, batch, objective, cfg, backend)


def after_layers(p: TransformerParams, x: Array, stats: RouterStats | None, batch: Batch,
                 objective: Objective, cfg: ModelConfig,
                 backend: Backend) -> tuple[Array, LossParts]:
    """As `loss`, from what the layers made of the batch: x [B, T, D] after the final norm.

    Reads embedding, head and MTP modules of `p`; `stats` are those of the layers that count here.
    """
    length, totals = x.shape[1], objective.totals
    tokens, segments = batch.tokens[:, :length], batch.segments[:, :length]
    embed = functools.partial(transformer.embed, p, backend=backend)
    targets = [targets_of(batch, 1)]
    sums = [_sums(p, x, targets[0], objective.token_loss, backend)]
    by_layer = [stats] if stats is not None else []
    for made in mtp.chain(p.mtp, x, tokens, segments, embed, cfg, backend):
        targets.append(targets_of(batch, len(targets) + 1))
        sums.append(_sums(p, made.x, targets[-1], cross_entropy, backend))
        if made.stats is not None:
            by_layer.append(jax.tree.map(lambda a: a[None], made.stats))
    joined = router.joined(by_layer)
    is_real_row = (segments != 0).any(axis=1)
    balance = balance_sum(joined, is_real_row, cfg, objective.balance) / totals.rows
    total = sums[0].loss / totals.targets + balance
    if cfg.mtp_depth:
        ahead = jnp.stack([one.loss for one in sums[1:]]).sum()
        total += objective.mtp_weight / cfg.mtp_depth * ahead / totals.targets
    loads, extra_rounds = jnp.zeros((0, 0)), jnp.zeros(())
    if joined is not None:
        loads, extra_rounds = joined.loads.sum(axis=1), jnp.sum(jnp.asarray(joined.extra_rounds))
    return total, LossParts(
        nll=jnp.stack([one.nll for one in sums]),
        correct=jnp.stack([one.correct for one in sums]),
        targets=jnp.stack([one.weights.sum() for one in targets]),
        balance=balance, loads=loads, extra_rounds=extra_rounds)


def _sums(p: TransformerParams, x: Array, targets: Targets, token_loss: TokenLoss,
          backend: Backend) -> Sums:
    """Sum a token loss over this part's positions."""
    def sums(head: Array, x: Array, targets: Targets) -> Sums:
        return token_losses.summed_loss(x, head, targets, token_loss, backend.loss_chunk,
                                        backend.loss_dtype)

    return backend.layout.psum_rows(sums, p.head, x, targets)


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
    """Return the change of a selection bias: speed * sign(mean load - load) [..., E].

    Called once an optimizer step with the loads of the whole batch (V3 report sec. 2.1.2), counts
    whose sum is below 2^31. The mean is kept as quotient and remainder: a rounded mean is no load,
    and a program that multiplies and subtracts in one rounding would move a balanced expert.
    """
    counts = loads.astype(jnp.int32)
    total = counts.sum(axis=-1, keepdims=True)
    quotient, remainder = total // loads.shape[-1], total % loads.shape[-1]
    return speed * jnp.sign(2 * (quotient - counts) + jnp.sign(remainder)).astype(loads.dtype)
