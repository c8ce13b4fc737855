"""RMSNorm, rotary embedding with YaRN, multi-head latent attention, grouped-query attention.

DeepSeek-V3 report section 2.1.1, equations 1-11; V2 report section 3.1.4 for YaRN. Axes: T tokens,
D model, H heads, G key-value heads, Q query latent, C latent, N nope, R rope, U value.
"""

import math

import numpy as np

from .config import ReferenceConfig

Array = np.ndarray


def rms_norm(x: Array, weight: Array, eps: float) -> Array:
    """x / sqrt(mean(x^2) + eps) * weight over the last axis."""
    mean_square = np.sum(x * x, axis=-1, keepdims=True) / x.shape[-1]
    return x / np.sqrt(mean_square + eps) * weight


def softmax(scores: Array) -> Array:
    """Softmax of a vector."""
    exponentials = np.exp(scores - np.max(scores.real))
    return exponentials / np.sum(exponentials)


def yarn_mscale(factor: float, mscale: float) -> float:
    """0.1 * mscale * ln(factor) + 1, and 1 when the context is not extended."""
    return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0


def yarn_range(dim: int, theta: float, yarn: dict) -> tuple[int, int]:
    """Pair indices between which frequencies pass from kept (low) to interpolated (high)."""

    def pair_with_turns(turns: float) -> float:
        length = yarn["original_length"]
        return dim * math.log(length / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low = max(math.floor(pair_with_turns(yarn["beta_fast"])), 0)
    high = min(math.ceil(pair_with_turns(yarn["beta_slow"])), dim - 1)
    return low, high


def rope_frequencies(dim: int, theta: float, yarn: dict | None) -> Array:
    """Radians per position of each of the dim/2 pairs [dim/2]."""
    frequencies = [theta ** (-2 * i / dim) for i in range(dim // 2)]
    if yarn is None:
        return np.array(frequencies)
    low, high = yarn_range(dim, theta, yarn)
    width = high - low if high != low else 0.001
    blended = []
    for i, frequency in enumerate(frequencies):
        ramp = min(max((i - low) / width, 0.0), 1.0)
        blended.append(frequency * (1 - ramp) + frequency / yarn["factor"] * ramp)
    return np.array(blended)


def rotary_magnitude(yarn: dict | None) -> float:
    """Factor on cos and sin: mscale over mscale_all_dim, 1 in every released model."""
    if yarn is None:
        return 1.0
    above = yarn_mscale(yarn["factor"], yarn["mscale"])
    return above / yarn_mscale(yarn["factor"], yarn["mscale_all_dim"])


def softmax_scale(dim: int, yarn: dict | None) -> float:
    """dim^-1/2, times the square of the YaRN mscale."""
    if yarn is None:
        return dim**-0.5
    return dim**-0.5 * yarn_mscale(yarn["factor"], yarn["mscale_all_dim"]) ** 2


def rope(x: Array, position: int, cfg: ReferenceConfig) -> Array:
    """Rotate the adjacent pairs (x0, x1), (x2, x3), ... of one vector by position * frequency."""
    magnitude = rotary_magnitude(cfg.yarn)
    rotated = []
    for i, frequency in enumerate(rope_frequencies(len(x), cfg.theta, cfg.yarn)):
        cos = magnitude * math.cos(position * frequency)
        sin = magnitude * math.sin(position * frequency)
        rotated += [x[2 * i] * cos - x[2 * i + 1] * sin, x[2 * i] * sin + x[2 * i + 1] * cos]
    return np.array(rotated)


def rope_all(x: Array, positions: Array, cfg: ReferenceConfig) -> Array:
    """Rotate each row of x [T, R]."""
    return np.array([rope(x[t], int(positions[t]), cfg) for t in range(len(x))])


def visible_keys(segments: Array, query: int) -> list[int]:
    """Keys of the same nonzero segment that do not come after the query."""
    if segments[query] == 0:
        return []
    return [s for s in range(query + 1) if segments[s] == segments[query]]


def attend_one_head(q: Array, k: Array, v: Array, segments: Array, scale: float) -> Array:
    """Causal softmax attention of one head: q, k [T, any], v [T, U] to [T, U]."""
    outputs = []
    for t in range(len(q)):
        output = np.zeros(v.shape[1])
        keys = visible_keys(segments, t)
        if keys:
            probabilities = softmax(np.array([np.sum(q[t] * k[s]) for s in keys]) * scale)
            for probability, s in zip(probabilities, keys):
                output = output + probability * v[s]
        outputs.append(output)
    return np.array(outputs)


def mla_queries(p: dict, x: Array, cfg: ReferenceConfig) -> Array:
    """Queries [T, H, N+R] before rotation, through the query latent where one is (eq. 6-9)."""
    if "w_dq" in p:
        x = rms_norm(x @ p["w_dq"], p["q_norm"], cfg.latent_eps)
    return np.stack([x @ p["w_uq"][:, h] for h in range(cfg.heads)], axis=1)


def mla_latent_and_key(
    p: dict, x: Array, positions: Array, cfg: ReferenceConfig
) -> tuple[Array, Array]:
    """The cache: the normed latent [T, C] and the rotated shared key [T, R] (eq. 1, 3)."""
    down = x @ p["w_dkv"]
    rank = down.shape[1] - cfg.rope
    latent = rms_norm(down[:, :rank], p["kv_norm"], cfg.latent_eps)
    return latent, rope_all(down[:, rank:], positions, cfg)


def mla(p: dict, x: Array, segments: Array, positions: Array, cfg: ReferenceConfig) -> Array:
    """Multi-head latent attention in its expanded form: x [T, D] to [T, D] (eq. 1-11)."""
    scale = softmax_scale(cfg.nope + cfg.rope, cfg.yarn)
    queries = mla_queries(p, x, cfg)
    latent, k_rope = mla_latent_and_key(p, x, positions, cfg)
    y = np.zeros(x.shape)
    for h in range(cfg.heads):
        k_nope = latent @ p["w_ukv"][:, h, : cfg.nope]
        v = latent @ p["w_ukv"][:, h, cfg.nope :]
        q_rope = rope_all(queries[:, h, cfg.nope :], positions, cfg)
        q = np.concatenate([queries[:, h, : cfg.nope], q_rope], axis=1)
        k = np.concatenate([k_nope, k_rope], axis=1)
        y = y + attend_one_head(q, k, v, segments, scale) @ p["w_o"][h]
    return y


def mla_absorbed(
    p: dict, x: Array, segments: Array, positions: Array, cfg: ReferenceConfig
) -> Array:
    """The same with the up-projections absorbed: every head attends to the latents themselves."""
    scale = softmax_scale(cfg.nope + cfg.rope, cfg.yarn)
    queries = mla_queries(p, x, cfg)
    latent, k_rope = mla_latent_and_key(p, x, positions, cfg)
    k = np.concatenate([latent, k_rope], axis=1)
    y = np.zeros(x.shape)
    for h in range(cfg.heads):
        q_latent = queries[:, h, : cfg.nope] @ p["w_ukv"][:, h, : cfg.nope].T
        q_rope = rope_all(queries[:, h, cfg.nope :], positions, cfg)
        q = np.concatenate([q_latent, q_rope], axis=1)
        mixed_latent = attend_one_head(q, k, latent, segments, scale)
        y = y + mixed_latent @ p["w_ukv"][:, h, cfg.nope :] @ p["w_o"][h]
    return y


def gqa(p: dict, x: Array, segments: Array, positions: Array, cfg: ReferenceConfig) -> Array:
    """Grouped-query attention, rotary over the whole head; query head h reads h // (H / G)."""
    heads, kv_heads = p["w_q"].shape[1], p["w_k"].shape[1]
    scale = softmax_scale(p["w_q"].shape[2], cfg.yarn)
    y = np.zeros(x.shape)
    for h in range(heads):
        g = h // (heads // kv_heads)
        q = rope_all(x @ p["w_q"][:, h], positions, cfg)
        k = rope_all(x @ p["w_k"][:, g], positions, cfg)
        y = y + attend_one_head(q, k, x @ p["w_v"][:, g], segments, scale) @ p["w_o"][h]
    return y


def attention(p: dict, x: Array, segments: Array, positions: Array, cfg: ReferenceConfig) -> Array:
    """MLA where the parameters have a latent, else grouped-query attention."""
    return (mla if "w_dkv" in p else gqa)(p, x, segments, positions, cfg)
