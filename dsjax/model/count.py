"""Parameters, active parameters, FLOPs and cache bytes, counted from the Specs (V3 sec. 4.2).

Conventions, which reproduce the published figures (V3 671B / 37B and 250 GFLOP, V2 155 GFLOP a
token at 4,096; ISCA'25 paper, Tables 1 and 2): active counts everything a token touches, both
embedding matrices included. Training FLOPs are 6 for each active parameter except the embedding's
look-up, plus 6 for each channel of score and value and each visible key, which is half the length
on average. MTP modules are counted apart. The cache is what decoding keeps, in 2-byte numbers.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from dsjax import params
from dsjax.config.model import MLAConfig, ModelConfig
from dsjax.model import transformer
from dsjax.params import Role

CACHE_BYTES = 2
"""Bytes of a cached number: bfloat16."""


@dataclass(frozen=True)
class Part:
    """One row of the table."""

    name: str
    params: int
    params_active: int
    flops_per_token: float
    kv_bytes_per_token: int


@dataclass(frozen=True)
class Count:
    """A model's sizes, part by part; totals are of the main model."""

    params_total: int
    params_mtp: int
    params_active: int
    flops_per_token: float
    kv_bytes_per_token: int
    length: int
    parts: list[Part]


PARTS: dict[Role, str] = {
    "embedding": "embedding",
    "attention": "attention",
    "ffn": "dense feed-forward",
    "expert": "routed experts",
    "shared_expert": "shared experts",
    "router": "router centroids",
    "router_bias": "router biases",
    "norm": "norms",
    "head": "head",
}
"""Rows of the table, by role."""


def count(cfg: ModelConfig, length: int = 4096) -> Count:
    """Count a model for rows of `length` tokens; nothing is allocated."""
    specs = transformer.specs(cfg)
    totals = dict.fromkeys(PARTS, 0)
    for spec in params.leaves(dataclasses.replace(specs, mtp=None)):
        totals[spec.role] += math.prod(spec.shape)
    parts = [_part(role, size, cfg, length) for role, size in totals.items() if size]
    return Count(
        params_total=sum(p.params for p in parts),
        params_mtp=params.size(specs.mtp),
        params_active=sum(p.params_active for p in parts),
        flops_per_token=sum(p.flops_per_token for p in parts),
        kv_bytes_per_token=sum(p.kv_bytes_per_token for p in parts),
        length=length,
        parts=parts,
    )


def _part(role: Role, size: int, cfg: ModelConfig, length: int) -> Part:
    active, cache = _active(role, size, cfg), 0
    flops = 0.0 if role == "embedding" else 6.0 * active
    if role == "attention":
        flops += attention_flops(cfg, length)
        cache = cfg.layers * cached_numbers(cfg) * CACHE_BYTES
    return Part(PARTS[role], size, active, flops, cache)


def _active(role: Role, size: int, cfg: ModelConfig) -> int:
    """Parameters of these that one token touches."""
    if role != "expert":
        return size
    assert cfg.moe is not None, "routed experts need a MoEConfig"
    return size * cfg.moe.experts_per_token // cfg.moe.experts


def attention_flops(cfg: ModelConfig, length: int) -> float:
    """Training FLOPs a token of scores and values over all layers, causal (half the keys)."""
    a = cfg.attention
    channels = a.qk_dim + a.value_dim if isinstance(a, MLAConfig) else 2 * a.head_dim
    return 6.0 * cfg.layers * a.heads * channels * length / 2


def cached_numbers(cfg: ModelConfig) -> int:
    """Numbers a token and layer that decoding caches: the latent and the shared rotary key."""
    a = cfg.attention
    if isinstance(a, MLAConfig):
        return a.kv_rank + a.rope_dim
    return 2 * a.kv_heads * a.head_dim


def training_flops(cfg: ModelConfig, length: int) -> float:
    """FLOPs of one training token in all, MTP modules and their use of the head included."""
    main = count(cfg, length)
    if not cfg.mtp_depth:
        return main.flops_per_token
    active = sum(_active(spec.role, math.prod(spec.shape), cfg)
                 for spec in params.leaves(transformer.specs(cfg).mtp))
    head = cfg.mtp_depth * cfg.d_model * cfg.vocab
    attention = attention_flops(cfg, length) * cfg.mtp_depth / cfg.layers
    return main.flops_per_token + 6.0 * (active + head) + attention
