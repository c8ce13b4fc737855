"""SwiGLU, the router, the mixture of experts, and what is counted about its routing.

DeepSeek-V3 report section 2.1.2, equations 12-16; V2 report section 2.2. The bias and the group
limit change only which experts are chosen, never the weights of those that are (eq. 16).
Axes: T tokens, D model, E experts, K experts per token, F expert hidden.
"""

import math
from dataclasses import dataclass

import numpy as np

from .attention import softmax
from .config import ReferenceConfig

Array = np.ndarray


def sigmoid(x: Array) -> Array:
    return 1.0 / (1.0 + np.exp(-x))


def swiglu(p: dict, x: Array) -> Array:
    """(silu(x W_gate) * (x W_up)) W_down; w_gate_up [D, 2, F] holds the gate first."""
    gate = x @ p["w_gate_up"][:, 0]
    up = x @ p["w_gate_up"][:, 1]
    return (gate * sigmoid(gate) * up) @ p["w_down"]


@dataclass(frozen=True)
class Routing:
    """affinity [T, E] without bias; chosen [T, K] best first; weights [T, K]; is_real [T]."""

    affinity: Array
    chosen: Array
    weights: Array
    is_real: Array


def top_k(values: Array, k: int) -> list[int]:
    """Indices of the k largest real parts, largest first, ties to the lowest index."""
    return sorted(range(len(values)), key=lambda i: (-values[i].real, i))[:k]


def choose_experts(score: Array, cfg: ReferenceConfig) -> list[int]:
    """Choose K of E experts from one token's selection scores, within the best groups.

    A group scores the sum of its two best experts (V3) or its best one (V2). Experts of the other
    groups are set to minus infinity: zero could win against negative biased scores.
    """
    if cfg.groups == 1:
        return top_k(score, cfg.experts_per_token)
    size = cfg.experts // cfg.groups
    counted = 2 if cfg.group_score == "top2" else 1
    group_scores = []
    for g in range(cfg.groups):
        members = score[g * size : (g + 1) * size]
        group_scores.append(sum(members[i].real for i in top_k(members, counted)))
    kept_groups = top_k(np.array(group_scores), cfg.groups_per_token)
    masked = np.array(
        [score[e].real if e // size in kept_groups else -np.inf for e in range(cfg.experts)]
    )
    return top_k(masked, cfg.experts_per_token)


def route(router: dict, x: Array, cfg: ReferenceConfig, is_real: Array | None = None) -> Routing:
    """Affinities, chosen experts and their weights for x [T, D].

    `router` holds centroids [D, E] and, unless the model has none, the balancing bias [E].
    """
    bias = router["bias"] if router.get("bias") is not None else np.zeros(cfg.experts)
    affinities, choices, weights = [], [], []
    for token in x:
        logits = token @ router["centroids"]
        affinity = sigmoid(logits) if cfg.score == "sigmoid" else softmax(logits)
        chosen = choose_experts(affinity + bias, cfg)
        gathered = affinity[chosen]
        if cfg.normalize:
            gathered = gathered / (np.sum(gathered) + 1e-20)
        affinities.append(affinity)
        choices.append(chosen)
        weights.append(gathered * cfg.scale)
    if is_real is None:
        is_real = np.ones(len(x), bool)
    return Routing(np.array(affinities), np.array(choices), np.array(weights), np.asarray(is_real))


def kept_assignments(
    routing: Routing, cfg: ReferenceConfig, capacity_factor: float | None
) -> set[tuple[int, int]]:
    """Pairs (token, expert) that are computed: all, or each expert's heaviest up to its capacity.

    Capacity is ceil(capacity_factor * T * K / E) with T the real tokens; equal weights keep the
    earlier token. Padding is never sent. Kept weights are not renormalized.
    """
    by_expert: dict[int, list[tuple[int, float]]] = {e: [] for e in range(cfg.experts)}
    for t in np.flatnonzero(routing.is_real):
        for expert, weight in zip(routing.chosen[t], routing.weights[t]):
            by_expert[int(expert)].append((int(t), float(weight.real)))
    capacity = None
    if capacity_factor is not None:
        tokens = int(np.sum(routing.is_real))
        capacity = math.ceil(capacity_factor * tokens * cfg.experts_per_token / cfg.experts)
    kept = set()
    for expert, assignments in by_expert.items():
        heaviest_first = sorted(assignments, key=lambda pair: (-pair[1], pair[0]))
        kept |= {(t, expert) for t, _ in heaviest_first[:capacity]}
    return kept


def moe(
    p: dict,
    x: Array,
    cfg: ReferenceConfig,
    is_real: Array | None = None,
    capacity_factor: float | None = None,
) -> tuple[Array, Routing]:
    """Shared experts plus the weighted chosen experts, without the residual (eq. 12)."""
    routing = route(p["router"], x, cfg, is_real)
    kept = kept_assignments(routing, cfg, capacity_factor)
    outputs = []
    for t, token in enumerate(x):
        y = np.zeros(x.shape[1])
        if p.get("shared") is not None:
            y = y + swiglu(p["shared"], token)
        for expert, weight in zip(routing.chosen[t], routing.weights[t]):
            if (t, int(expert)) in kept:
                one = {name: matrix[expert] for name, matrix in p["experts"].items()}
                y = y + weight * swiglu(one, token)
        outputs.append(y)
    return np.array(outputs), routing


def expert_load(routings: list[Routing], experts: int) -> Array:
    """Real tokens sent to each expert [E], summed over the sequences of a batch."""
    load = np.zeros(experts)
    for routing in routings:
        for t in np.flatnonzero(routing.is_real):
            for expert in routing.chosen[t]:
                load[expert] += 1
    return load


def updated_bias(bias: Array, load: Array, speed: float) -> Array:
    """b + gamma * sign(mean load - load): overloaded experts down, underloaded up."""
    return bias + speed * np.sign(np.mean(load) - load)


def max_violation(load: Array) -> float:
    """MaxVio = (largest load - mean load) / mean load."""
    return float((np.max(load) - np.mean(load)) / np.mean(load))
