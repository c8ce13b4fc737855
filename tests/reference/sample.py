"""Random parameter trees in the shapes that the reference reads; sizes are tiny and unequal."""

import numpy as np

from .config import ReferenceConfig

Rng = np.random.Generator

TINY = ReferenceConfig(
    heads=3,
    nope=5,
    rope=4,
    value=7,
    q_rank=6,
    kv_rank=8,
    experts=6,
    experts_per_token=2,
    groups=3,
    groups_per_token=2,
    scale=2.5,
    mtp_depth=2,
)


def matrix(rng: Rng, *shape: int, fan_in: int) -> np.ndarray:
    return rng.standard_normal(shape) / np.sqrt(fan_in)


def norm_weight(rng: Rng, size: int) -> np.ndarray:
    return 1.0 + 0.2 * rng.standard_normal(size)


def mla_params(rng: Rng, cfg: ReferenceConfig, dim: int) -> dict:
    H, N, R, U, C, Q = cfg.heads, cfg.nope, cfg.rope, cfg.value, cfg.kv_rank, cfg.q_rank
    p = {
        "w_uq": matrix(rng, Q or dim, H, N + R, fan_in=Q or dim),
        "w_dkv": matrix(rng, dim, C + R, fan_in=dim),
        "kv_norm": norm_weight(rng, C),
        "w_ukv": matrix(rng, C, H, N + U, fan_in=C),
        "w_o": matrix(rng, H, U, dim, fan_in=H * U),
    }
    if Q:
        p |= {"w_dq": matrix(rng, dim, Q, fan_in=dim), "q_norm": norm_weight(rng, Q)}
    return p


def gqa_params(rng: Rng, cfg: ReferenceConfig, dim: int, kv_heads: int) -> dict:
    H, N = cfg.heads, cfg.nope
    return {
        "w_q": matrix(rng, dim, H, N, fan_in=dim),
        "w_k": matrix(rng, dim, kv_heads, N, fan_in=dim),
        "w_v": matrix(rng, dim, kv_heads, N, fan_in=dim),
        "w_o": matrix(rng, H, N, dim, fan_in=H * N),
    }


def swiglu_params(rng: Rng, dim: int, hidden: int) -> dict:
    return {
        "w_gate_up": matrix(rng, dim, 2, hidden, fan_in=dim),
        "w_down": matrix(rng, hidden, dim, fan_in=hidden),
    }


def moe_params(rng: Rng, cfg: ReferenceConfig, dim: int, hidden: int) -> dict:
    E = cfg.experts
    return {
        "router": {
            "centroids": matrix(rng, dim, E, fan_in=dim),
            "bias": 0.1 * rng.standard_normal(E),
        },
        "experts": {
            "w_gate_up": matrix(rng, E, dim, 2, hidden, fan_in=dim),
            "w_down": matrix(rng, E, hidden, dim, fan_in=hidden),
        },
        "shared": swiglu_params(rng, dim, hidden + 1),
    }


def block_params(rng: Rng, cfg: ReferenceConfig, dim: int, hidden: int, is_moe: bool) -> dict:
    ffn = moe_params(rng, cfg, dim, hidden) if is_moe else swiglu_params(rng, dim, hidden)
    return {
        "attn_norm": norm_weight(rng, dim),
        "attn": mla_params(rng, cfg, dim),
        "ffn_norm": norm_weight(rng, dim),
        "ffn": ffn,
    }


def model_params(
    rng: Rng, cfg: ReferenceConfig, vocabulary: int, dim: int, dense: int, moe: int, hidden: int
) -> dict:
    """A whole model with `dense` and `moe` layers and cfg.mtp_depth prediction modules."""
    return {
        "embed": rng.standard_normal((vocabulary, dim)),
        "dense": [block_params(rng, cfg, dim, hidden, False) for _ in range(dense)],
        "moe": [block_params(rng, cfg, dim, hidden, True) for _ in range(moe)],
        "norm": norm_weight(rng, dim),
        "head": matrix(rng, dim, vocabulary, fan_in=dim),
        "mtp": [
            {
                "embed_norm": norm_weight(rng, dim),
                "hidden_norm": norm_weight(rng, dim),
                "w_proj": matrix(rng, 2 * dim, dim, fan_in=2 * dim),
                "block": block_params(rng, cfg, dim, hidden, True),
                "norm": norm_weight(rng, dim),
            }
            for _ in range(cfg.mtp_depth)
        ],
    }
