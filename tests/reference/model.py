"""The transformer and its multi-token prediction modules, one sequence at a time.

DeepSeek-V3 report sections 2.1 and 2.2, equations 21-23. Two choices that the report leaves open or
that the released weights decide otherwise: module k takes [embedding; hidden] in this order, and
the hidden it takes is the one after the previous norm (h^0 follows the final norm).
Axes: T tokens, D model, V vocabulary, J depth of prediction.
"""

from dataclasses import dataclass

import numpy as np

from .attention import attention, rms_norm
from .config import ReferenceConfig
from .moe import Routing, moe, swiglu

Array = np.ndarray


@dataclass(frozen=True)
class Output:
    """Numbers of one sequence of T tokens; entry k-1 of the mtp lists has T-k positions.

    hidden [T, D] after the final norm; logits [T, V]; routings one per MoE layer, in order;
    mtp_hidden [T-k, D]; mtp_logits [T-k, V]; mtp_routings (None where the block is dense).
    """

    hidden: Array
    logits: Array
    routings: list[Routing]
    mtp_hidden: list[Array]
    mtp_logits: list[Array]
    mtp_routings: list[Routing | None]


def block(
    p: dict,
    x: Array,
    segments: Array,
    positions: Array,
    cfg: ReferenceConfig,
    is_real: Array | None = None,
) -> tuple[Array, Routing | None]:
    """Pre-norm attention and feed-forward, each added to the stream; the MoE's routing or None.

    is_real [T] says which tokens are routed and counted: those of a nonzero segment, by default.
    """
    normed = rms_norm(x, p["attn_norm"], cfg.eps)
    x = x + attention(p["attn"], normed, segments, positions, cfg)
    normed = rms_norm(x, p["ffn_norm"], cfg.eps)
    if "router" in p["ffn"]:
        y, routing = moe(p["ffn"], normed, cfg, segments != 0 if is_real is None else is_real)
        return x + y, routing
    return x + swiglu(p["ffn"], normed), None


def hidden_states(
    params: dict, tokens: Array, segments: Array, positions: Array, cfg: ReferenceConfig
) -> tuple[Array, list[Routing]]:
    """h^0 [T, D], after the final norm, and the routing of each MoE layer."""
    x = params["embed"][tokens]
    routings = []
    for layer in params["dense"] + params["moe"]:
        x, routing = block(layer, x, segments, positions, cfg)
        if routing is not None:
            routings.append(routing)
    return rms_norm(x, params["norm"], cfg.eps), routings


def mtp_module(
    module: dict,
    embed: Array,
    tokens: Array,
    segments: Array,
    positions: Array,
    hidden: Array,
    k: int,
    cfg: ReferenceConfig,
) -> tuple[Array, Routing | None]:
    """h^k [T-k, D] from h^(k-1) [T-k+1, D] and the tokens [T] (eq. 21, 22).

    Position i reads the embedding of token i+k, so that it can predict token i+k+1. It is real
    (routed, counted in loads and balance) if both lie in one nonzero segment; else its input is a
    mixture that no loss uses, and padding or packing would change the balance loss.
    """
    length = len(tokens) - k
    is_real = (segments[:length] != 0) & (segments[:length] == segments[k:])
    merged = []
    for i in range(length):
        embedding = rms_norm(embed[tokens[i + k]], module["embed_norm"], cfg.eps)
        previous = rms_norm(hidden[i], module["hidden_norm"], cfg.eps)
        merged.append(np.concatenate([embedding, previous]) @ module["w_proj"])
    x, routing = block(
        module["block"], np.array(merged), segments[:length], positions[:length], cfg, is_real
    )
    return rms_norm(x, module["norm"], cfg.eps), routing


def sequence(
    params: dict,
    tokens: Array,
    segments: Array,
    cfg: ReferenceConfig,
    positions: Array | None = None,
) -> Output:
    """Run the model and its prediction modules over tokens [T] with segments [T].

    Positions count from 0 through the row unless given; only differences within a segment matter.
    """
    tokens, segments = np.asarray(tokens), np.asarray(segments)
    positions = np.arange(len(tokens)) if positions is None else np.asarray(positions)
    hidden, routings = hidden_states(params, tokens, segments, positions, cfg)
    if len(params["mtp"]) != cfg.mtp_depth:
        raise ValueError(f"{len(params['mtp'])} mtp modules, but mtp_depth={cfg.mtp_depth}")
    mtp_hidden, mtp_routings = [], []
    previous = hidden
    for k, module in enumerate(params["mtp"], start=1):
        previous, routing = mtp_module(
            module, params["embed"], tokens, segments, positions, previous, k, cfg
        )
        mtp_hidden.append(previous)
        mtp_routings.append(routing)
    return Output(
        hidden=hidden,
        logits=hidden @ params["head"],
        routings=routings,
        mtp_hidden=mtp_hidden,
        mtp_logits=[h @ params["head"] for h in mtp_hidden],
        mtp_routings=mtp_routings,
    )


def forward(
    params: dict,
    tokens: Array,
    segments: Array,
    cfg: ReferenceConfig,
    positions: Array | None = None,
) -> list[Output]:
    """`sequence` for each row of tokens [B, T] and segments [B, T]."""
    rows = range(len(tokens))
    return [
        sequence(params, tokens[b], segments[b], cfg, None if positions is None else positions[b])
        for b in rows
    ]
