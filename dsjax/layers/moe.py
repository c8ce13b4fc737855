"""DeepSeekMoE: shared experts see every token, routed experts see theirs (V3 report eq. 12).

Axes: B rows, T tokens, D model, E experts, K experts per token, F expert hidden.
"""

from __future__ import annotations

import dataclasses
from fractions import Fraction

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from dsjax.config.model import MoEConfig
from dsjax.layers import adapted, router
from dsjax.layers.backend import Backend
from dsjax.layers.replicas import Replicas
from dsjax.layers.router import RouterParams, RouterStats, Routing
from dsjax.layers.swiglu import SwiGLUParams, swiglu, swiglu_specs
from dsjax.params import stack


@struct.dataclass
class MoEParams:
    """Router, routed experts stacked along E, and the shared experts as one SwiGLU."""

    router: RouterParams
    experts: SwiGLUParams  # [E, D, 2, F], [E, F, D]
    shared: SwiGLUParams | None
    replicas: Replicas | None = None
    """Copies of experts; `experts` are then the physical ones."""


def moe_specs(d_model: int, cfg: MoEConfig) -> MoEParams:
    """Describe one mixture of experts."""
    experts = stack(swiglu_specs(d_model, cfg.expert_dim, "expert"), cfg.experts, "expert")
    shared = None
    if cfg.shared_experts:
        shared = swiglu_specs(d_model, cfg.shared_experts * cfg.expert_dim, "shared_expert")
    return MoEParams(router.router_specs(d_model, cfg), experts, shared)


def moe(p: MoEParams, x: Array, is_real: Array, cfg: MoEConfig, backend: Backend,
        routes: Array | None = None) -> tuple[Array, RouterStats]:
    """Route, dispatch and add the shared experts. x [B, T, D], is_real [B, T] -> [B, T, D].

    `routes` [B, T, K] are experts to take instead of the router's own choice; `keep_routes` of the
    backend hands out that choice in the statistics, taken or not.
    """
    def choose(p: RouterParams, x: Array, is_real: Array,
               routes: Array | None) -> tuple[Routing, RouterStats]:
        routing = router.route(p, x, cfg, routes)
        stats = router.stats(routing, is_real, cfg)
        if backend.keep_routes:
            own = routing.experts if routes is None else router.choose(p, routing.affinity, cfg)
            stats = dataclasses.replace(stats, experts=own)
        if backend.keep_gates:
            stats = dataclasses.replace(stats, gates=router.gates(routing, is_real))
        return routing, stats

    routing, stats = backend.layout.map_rows(choose, p.router, x, is_real, routes)
    experts = routing.experts
    if p.replicas is not None:
        experts = p.replicas.chosen(experts, routing.weights)
        physical = router.count(experts, is_real.astype(routing.affinity.dtype),
                                p.replicas.of.size)
        stats = dataclasses.replace(stats, physical_loads=physical)
    if cfg.capacity_factor is not None:
        routing = limit_capacity(routing, is_real, cfg)
    tokens = x.reshape(-1, x.shape[-1])
    per_token = cfg.experts_per_token
    y, extra_rounds = backend.dispatch(
        tokens,
        experts.reshape(-1, per_token),
        routing.weights.reshape(-1, per_token).astype(x.dtype),
        adapted.whole(p.experts.w_gate_up, x.dtype),
        adapted.whole(p.experts.w_down, x.dtype),
        backend.expert_mlp,
    )
    y = y.reshape(x.shape)
    if p.shared is not None:
        y = y + swiglu(p.shared, x, backend)
    return y, dataclasses.replace(stats, extra_rounds=extra_rounds)


def limit_capacity(routing: Routing, is_real: Array, cfg: MoEConfig) -> Routing:
    """Drop what exceeds an expert's capacity, lightest affinity first (V2 report sec. 2.2.4).

    An expert keeps ceil(factor * T * K / E) of a batch's assignments; a dropped one weighs zero.
    T counts real tokens; padding neither competes nor is kept. Of equal weights the earlier stays.
    """
    flat_experts = routing.experts.reshape(-1)
    assigned = is_real.sum(dtype=jnp.int32) * cfg.experts_per_token
    capacity = _capacity(assigned, flat_experts.size, cfg)
    real = jnp.broadcast_to(is_real[..., None], routing.experts.shape)
    weight = jnp.where(real, jax.lax.stop_gradient(routing.weights), -1.0).reshape(-1)
    order = jnp.lexsort((-weight, flat_experts))
    start = jnp.searchsorted(flat_experts[order], jnp.arange(cfg.experts, dtype=jnp.int32))
    position = jnp.arange(flat_experts.size, dtype=jnp.int32) - start[flat_experts[order]]
    is_kept = jnp.zeros(flat_experts.size, bool).at[order].set(position < capacity)
    is_kept = is_kept.reshape(real.shape) & real
    return dataclasses.replace(routing, weights=jnp.where(is_kept, routing.weights, 0.0))


def _capacity(assignments: Array, most: int, cfg: MoEConfig) -> Array:
    """Return how many `assignments` [] an expert keeps, at most `most`: ceil(factor * A / E).

    In integers, as a rounded product has no ceiling: the factor is the decimal that was written, or
    the nearest fraction whose product with `most` has 31 bits.
    """
    assert cfg.capacity_factor is not None, "a capacity needs a capacity_factor"
    share = min(Fraction(str(cfg.capacity_factor)) / cfg.experts, Fraction(1))
    share = 1 / (1 / share).limit_denominator(max((2**31 - 1) // most, 1))
    return -(-assignments * share.numerator // min(share.denominator, 2**31 - 1))
