"""The router: a token's choice of experts (V3 report eqs. 12-16; V2 report sec. 2.2).

Affinity is a sigmoid per expert (V3) or a softmax over experts (V2), in float32 with full-precision
products (a GPU or TPU would otherwise round the operands and choose other experts). The selection
bias steers the choice alone; outputs are weighted by the unbiased affinities. The bias has no
gradient: a step moves it by the sign of the load (sec. 2.1.2; `model.loss.bias_step`, applied by
`train.step`). Ties go to the lowest index. Axes: B rows, T tokens of a row, D model, E experts, G
groups, K experts per token.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array
from jax.ad_checkpoint import checkpoint_name

from dsjax.config.model import MoEConfig
from dsjax.numerics.wide import exact, wide
from dsjax.params import spec


@struct.dataclass
class RouterParams:
    """One centroid e_i per expert, and the selection bias b_i."""

    centroids: Array  # [D, E]
    bias: Array | None  # [E], moved by the balance rule, never by a gradient


@struct.dataclass
class Routing:
    """The choice for every token."""

    experts: Array  # [B, T, K] int32
    weights: Array  # [B, T, K] float32, scaled
    affinity: Array  # [B, T, E] float32, unbiased


@struct.dataclass
class RouterStats:
    """Sums that the balance rules and losses read, by row: small, and summable over devices."""

    loads: Array  # [B, E] real tokens that chose expert i
    frequency: Array  # [B, E] f_i: share of real tokens with i among the K best unbiased, x E / K
    affinity: Array  # [B, E] P_i: mean over real tokens of affinity over its sum
    group_share: Array  # [B, G] share of real tokens that chose an expert of the group
    extra_rounds: Array | None = None  # [] of the experts' exchange over devices, see parallel
    experts: Array | None = None  # [B, T, K] the choice itself, where it is asked for
    physical_loads: Array | None = None  # [B, P] of copies of experts, where there are any
    gates: Array | None = None  # [B, E] routing weights of real tokens, where they are asked for


def joined(stats: Sequence[RouterStats]) -> RouterStats | None:
    """Statistics of stacks of layers as those of one stack, leaves [L, ...]; None of none."""
    if len(stats) < 2:
        return stats[0] if stats else None
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), *stats)


def router_specs(d_model: int, cfg: MoEConfig) -> RouterParams:
    """Describe one router."""
    bias = spec((cfg.experts,), (None,), "zeros", is_trainable=False,
                role="router_bias") if cfg.has_bias else None
    return RouterParams(spec((d_model, cfg.experts), ("embed", None), role="router"), bias)


def route(p: RouterParams, x: Array, cfg: MoEConfig, experts: Array | None = None) -> Routing:
    """Choose K experts per token, from the best groups only. x [B, T, D].

    Given experts [B, T, K] are taken instead of a choice, weighted as if they had been chosen: so
    a training step can follow the routes that an engine took.
    """
    dtype = wide(x.dtype)
    scores = jnp.einsum("btd,de->bte", x.astype(dtype), p.centroids.astype(dtype),
                        precision=jax.lax.Precision.HIGHEST)
    affinity = jax.nn.sigmoid(scores) if cfg.score == "sigmoid" else jax.nn.softmax(scores, -1)
    if experts is None:
        experts = choose(p, affinity, cfg)
    experts = checkpoint_name(experts, "choice")
    weights = jnp.take_along_axis(affinity, experts, axis=-1)
    if cfg.is_normalized:
        weights = weights / (weights.sum(-1, keepdims=True) + 1e-20)
    return Routing(experts, cfg.scale * weights, affinity)


def choose(p: RouterParams, affinity: Array, cfg: MoEConfig) -> Array:
    """The K experts of the highest affinity plus bias (V3 eq. 16). affinity [B, T, E] -> [B, T, K].

    The bias b_i steers this choice and nothing else; no gradient passes.
    """
    score = jax.lax.stop_gradient(affinity)
    if p.bias is not None:
        score = score + jax.lax.stop_gradient(p.bias).astype(score.dtype)[None, None]
    return jax.lax.top_k(open_groups(score, cfg), cfg.experts_per_token)[1]


def open_groups(choice: Array, cfg: MoEConfig) -> Array:
    """Put -inf on experts outside each token's best `groups_per_token` groups. choice [B, T, E]."""
    if cfg.groups_per_token == cfg.groups:
        return choice
    grouped = choice.reshape(*choice.shape[:2], cfg.groups, -1)
    best = 2 if cfg.group_score == "top2" else 1
    score = jax.lax.top_k(grouped, best)[0].sum(-1)
    opened = jax.lax.top_k(score, cfg.groups_per_token)[1]
    is_open = jax.nn.one_hot(opened, cfg.groups, dtype=bool).any(axis=-2)
    return jnp.where(is_open[..., None], grouped, -jnp.inf).reshape(choice.shape)


def stats(routing: Routing, is_real: Array, cfg: MoEConfig) -> RouterStats:
    """Count choices and mean affinities over the real tokens of each row. is_real [B, T] bool.

    Implements f_i and P_i of V3 report eqs. 18-20 (whose top-K is of the unbiased affinities) and
    the group shares of V2's communication loss.
    """
    real = is_real.astype(routing.affinity.dtype)
    tokens = jnp.maximum(real.sum(1), 1.0)[:, None]
    loads = count(routing.experts, real, cfg.experts)
    unbiased = jax.lax.top_k(jax.lax.stop_gradient(routing.affinity), cfg.experts_per_token)[1]
    frequency = count(unbiased, real, cfg.experts) * (cfg.experts / cfg.experts_per_token)
    share = routing.affinity / (routing.affinity.sum(-1, keepdims=True) + 1e-20)
    group = routing.experts // (cfg.experts // cfg.groups)
    is_hit = jax.nn.one_hot(group, cfg.groups, dtype=bool).any(axis=2)
    return RouterStats(
        loads=loads,
        frequency=frequency / tokens,
        affinity=jnp.einsum("bte,bt->be", share, real, precision=exact(real.dtype)) / tokens,
        group_share=jnp.einsum("btg,bt->bg", is_hit.astype(real.dtype), real,
                               precision=exact(real.dtype)) / tokens,
    )


def gates(routing: Routing, is_real: Array) -> Array:
    """Sum each expert's routing weights over the real tokens of a row: is_real [B, T] -> [B, E]."""
    real = is_real.astype(routing.weights.dtype)
    rows = jnp.arange(is_real.shape[0])[:, None, None]
    sums = jnp.zeros((is_real.shape[0], routing.affinity.shape[-1]), real.dtype)
    return sums.at[rows, routing.experts].add(routing.weights * real[..., None])


def count(experts: Array, real: Array, among: int) -> Array:
    """Real tokens of each row that chose each expert: experts [B, T, K] -> [B, E] float32."""
    def by_adding(experts: Array, real: Array) -> Array:
        rows = jnp.arange(experts.shape[0])[:, None, None]
        weights = jnp.broadcast_to(real[..., None], experts.shape)
        return jnp.zeros((experts.shape[0], among), real.dtype).at[rows, experts].add(weights)

    def by_comparing(experts: Array, real: Array) -> Array:
        each = jnp.arange(among, dtype=experts.dtype)[None, None, None]
        return jnp.where(experts[..., None] == each, real[..., None, None], 0.0).sum((1, 2))

    # a TPU adds by a sort, whose program is large (ops/buckets.py)
    return jax.lax.platform_dependent(experts, real, tpu=by_comparing, default=by_adding)
