"""Parameters, active parameters, FLOPs and cache bytes, counted from the Specs (V3 sec. 4.2).

Conventions, which reproduce the published figures (V3 671B / 37B and 250 GFLOP, V2 155 GFLOP a
token at 4,096; ISCA'25 paper, Tables 1 and 2): active counts everything a token touches, both
embedding matrices included. Training FLOPs are 6 for each active parameter except the embedding's
look-up, plus 6 for each channel of score and value and each visible key, which is half the length
on average. MTP modules are counted apart. The cache is what decoding keeps, in 2-byte numbers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from dsjax import params
from dsjax.config.model import MLAConfig, ModelConfig
from dsjax.model import transformer

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


PARTS = (
    "embedding",
    "attention",
    "dense feed-forward",
    "routed experts",
    "shared experts",
    "router centroids",
    "router biases",
    "norms",
    "head",
)


def _part_of(path: str) -> str:
    """The table row a parameter's dotted name belongs to."""
    if path in ("embed", "head"):
        return {"embed": "embedding", "head": "head"}[path]
    if ".attn." in path:
        return "attention"
    for key, name in (
        (".ffn.experts.", "routed experts"),
        (".ffn.shared.", "shared experts"),
        (".router.centroids", "router centroids"),
        (".router.bias", "router biases"),
        (".ffn.w_", "dense feed-forward"),
    ):
        if key in path:
            return name
    return "norms"


def count(cfg: ModelConfig, length: int = 4096) -> Count:
    """Count a model for rows of `length` tokens; nothing is allocated."""
    totals = dict.fromkeys(PARTS, 0)
    mtp = 0
    for path, spec in params.paths(transformer.specs(cfg)):
        size = math.prod(spec.shape)
        if path.startswith("mtp."):
            mtp += size
        else:
            totals[_part_of(path)] += size
    parts = [_part(name, size, cfg, length) for name, size in totals.items() if size]
    return Count(
        params_total=sum(p.params for p in parts),
        params_mtp=mtp,
        params_active=sum(p.params_active for p in parts),
        flops_per_token=sum(p.flops_per_token for p in parts),
        kv_bytes_per_token=sum(p.kv_bytes_per_token for p in parts),
        length=length,
        parts=parts,
    )


def _part(name: str, size: int, cfg: ModelConfig, length: int) -> Part:
    active, cache = size, 0
    if name == "routed experts":
        assert cfg.moe is not None, "routed experts need a MoEConfig"
        active = size * cfg.moe.experts_per_token // cfg.moe.experts
    flops = 0.0 if name == "embedding" else 6.0 * active
    if name == "attention":
        flops += attention_flops(cfg, length)
        cache = cfg.layers * cached_numbers(cfg) * CACHE_BYTES
    return Part(name, size, active, flops, cache)


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
    active = 0
    for path, spec in params.paths(transformer.specs(cfg)):
        if path.startswith("mtp."):
            size = math.prod(spec.shape)
            if ".ffn.experts." in path and cfg.moe is not None:
                size = size * cfg.moe.experts_per_token // cfg.moe.experts
            active += size
    head = cfg.mtp_depth * cfg.d_model * cfg.vocab
    attention = attention_flops(cfg, length) * cfg.mtp_depth / cfg.layers
    return main.flops_per_token + 6.0 * (active + head) + attention
