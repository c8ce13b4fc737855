"""Training losses: next token, multi-token prediction, and load balance of V3 and of V2.

DeepSeek-V3 report equations 17-20 (balance) and 24-25 (prediction); V2 report section 2.2.3.
A batch is tokens, segments, weights [B, T+1]: the model reads the first T, the targets are the
last T. Axes: B rows, T tokens, E experts, K experts per token, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from .config import ReferenceConfig
from .model import forward
from .moe import Routing, top_k

Array = np.ndarray
Scalar = Any  # float, or complex under the complex step


def negative_log_likelihood(logits: Array, target: int) -> Scalar:
    """-log softmax(logits)[target] for logits [V]."""
    shifted = logits - np.max(logits.real)
    return np.log(np.sum(np.exp(shifted))) - shifted[target]


def summed_loss(
    logits: list[Array], tokens: Array, segments: Array, weights: Array, ahead: int
) -> tuple[Scalar, float]:
    """Weighted sum of the losses of predicting token i+ahead at i, and the sum of weights.

    logits: B arrays [T+1-ahead, V]. A target counts if it lies in its position's segment, not 0.
    """
    total, weight_total = 0.0, 0.0
    for b in range(len(tokens)):
        for i in range(len(tokens[b]) - ahead):
            target = i + ahead
            if segments[b][i] != 0 and segments[b][i] == segments[b][target]:
                loss = negative_log_likelihood(logits[b][i], tokens[b][target])
                total = total + weights[b][target] * loss
                weight_total = weight_total + weights[b][target]
    return total, weight_total


def balance_loss_v3(routing: Routing, cfg: ReferenceConfig) -> Scalar:
    """Sum_i f_i P_i of one sequence, without alpha (eq. 17-20); 0 where no token is real.

    f counts each token's K highest affinities, with neither bias nor group limit; P is the mean
    of the affinities divided by their sum over experts.
    """
    real = np.flatnonzero(routing.is_real)
    counts, shares = np.zeros(cfg.experts), np.zeros(cfg.experts)
    for t in real:
        counts[top_k(routing.affinity[t], cfg.experts_per_token)] += 1
        shares = shares + routing.affinity[t] / np.sum(routing.affinity[t])
    if len(real) == 0:
        return 0.0
    f = counts * cfg.experts / (cfg.experts_per_token * len(real))
    return np.sum(f * shares / len(real))


@dataclass(frozen=True)
class BalanceV2:
    """The three V2 losses of one sequence, without alpha1, alpha2, alpha3."""

    expert: Scalar
    device: Scalar
    communication: Scalar


def balance_losses_v2(
    routing: Routing, cfg: ReferenceConfig, devices: int, device_limit: int
) -> BalanceV2:
    """V2's balance losses; experts lie on `devices` in contiguous equal groups.

    expert: f_i = E/(K T) * tokens that chose i, P_i = mean affinity. device: f' = mean f and
    P' = sum P over a device's experts. communication: f'' = D/(M T) * tokens sent to the device.
    """
    real = np.flatnonzero(routing.is_real)
    size = cfg.experts // devices
    chosen_count, affinity_sum = np.zeros(cfg.experts), np.zeros(cfg.experts)
    sent = np.zeros(devices)
    for t in real:
        chosen_count[routing.chosen[t]] += 1
        affinity_sum = affinity_sum + routing.affinity[t]
        for device in {int(expert) // size for expert in routing.chosen[t]}:
            sent[device] += 1
    if len(real) == 0:
        return BalanceV2(0.0, 0.0, 0.0)
    f = chosen_count * cfg.experts / (cfg.experts_per_token * len(real))
    p = affinity_sum / len(real)
    f_sent = sent * devices / (device_limit * len(real))
    device, communication = 0.0, 0.0
    for d in range(devices):
        members = slice(d * size, (d + 1) * size)
        device = device + np.mean(f[members]) * np.sum(p[members])
        communication = communication + f_sent[d] * np.sum(p[members])
    return BalanceV2(np.sum(f * p), device, communication)


def over_layers_and_rows(one: Callable[[Routing], Scalar], layers: list[list[Routing]]) -> Scalar:
    """Sum over layers of the mean over rows; layers[l][b] is row b's routing in layer l.

    A row of padding only counts as a row, with loss 0.
    """
    return sum((sum(one(row) for row in rows) / len(rows) for rows in layers), 0.0)


@dataclass(frozen=True)
class Losses:
    """total = main + lambda / J * sum(mtp) + alpha * balance."""

    total: Scalar
    main: Scalar
    mtp: list[Scalar]
    balance: Scalar
    weight_total: float
    routings: list[list[Routing]]


def training_loss(
    params: dict,
    tokens: Array,
    segments: Array,
    weights: Array,
    cfg: ReferenceConfig,
    mtp_weight: float = 0.0,
    balance_alpha: float = 0.0,
    balance_includes_mtp: bool = True,
) -> Losses:
    """The loss of a batch [B, T+1] and its parts.

    Each depth's loss is divided by the main loss's weight total: the report keeps 1/T although
    depth k has fewer targets. routings[l][b]: MoE layers, then the prediction modules'.
    """
    tokens, segments, weights = np.asarray(tokens), np.asarray(segments), np.asarray(weights)
    rows = forward(params, tokens[:, :-1], segments[:, :-1], cfg)
    summed, weight_total = summed_loss([r.logits for r in rows], tokens, segments, weights, 1)
    main = summed / weight_total
    mtp = []
    for k in range(1, cfg.mtp_depth + 1):
        logits = [r.mtp_logits[k - 1] for r in rows]
        mtp.append(summed_loss(logits, tokens, segments, weights, k + 1)[0] / weight_total)
    layers = [list(layer) for layer in zip(*(r.routings for r in rows))]
    mtp_layers = [list(layer) for layer in zip(*(r.mtp_routings for r in rows))]
    mtp_layers = [layer for layer in mtp_layers if layer[0] is not None]
    balanced = layers + (mtp_layers if balance_includes_mtp else [])
    balance = over_layers_and_rows(lambda routing: balance_loss_v3(routing, cfg), balanced)
    total = main + balance_alpha * balance
    if mtp:
        total = total + mtp_weight / cfg.mtp_depth * sum(mtp)
    return Losses(total, main, mtp, balance, weight_total, layers + mtp_layers)
