"""Expert parallel load balancer (EPLB, V3 section 3.4): the experts to copy, and their places.

A GPU holds `replicas / gpus` physical experts; loads are uneven, so the heaviest logical experts
get more than one replica and tokens are spread over them. Hierarchically, groups of experts are
packed to nodes first, because routing is limited to a few groups and a group's experts then share
a node; the global policy ignores groups. Both are greedy: heaviest first, into the lightest bin
with room left. Semantics as in the published tool, github.com/deepseek-ai/EPLB, including that
two replicas of one expert may land on the same GPU. Called by `dsjax loads` (cli/loads.py), which
reads a run's loads, and by an engine that places copies (infer/engine/experts.py).

Axes: L layers, E logical experts, R replicas (physical experts), C the most copies of one expert.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dsjax.errors import UserError

Ints = NDArray[np.int64]


def rebalance_experts(
    weight: ArrayLike, num_replicas: int, num_groups: int, num_nodes: int, num_gpus: int
) -> tuple[Ints, Ints, Ints]:
    """Place replicas of every layer's experts for the loads `weight` [L, E].

    Returns phy2log [L, R], the expert that each physical slot holds, GPU after GPU; log2phy
    [L, E, C], the slots that hold each expert, -1 where it has fewer than C; logcnt [L, E], how
    many. Hierarchical if the groups divide evenly over the nodes, else global.
    """
    loads = np.asarray(weight, np.float64)
    _check(loads, num_replicas, num_groups, num_nodes, num_gpus)
    if num_groups % num_nodes:
        num_groups = num_nodes = 1
    placed = [_balance(load, num_replicas, num_groups, num_nodes, num_gpus) for load in loads]
    phy2log, copy = (np.stack(part) for part in zip(*placed))
    layers, experts = loads.shape
    logcnt = np.stack([np.bincount(row, minlength=experts) for row in phy2log])
    log2phy = np.full((layers, experts, logcnt.max()), -1)
    log2phy[np.arange(layers)[:, None], phy2log, copy] = np.arange(num_replicas)
    return phy2log, log2phy, logcnt


def slot_loads(weight: ArrayLike, phy2log: Ints, logcnt: Ints) -> NDArray[np.float64]:
    """Load of every slot [L, R] when the tokens of an expert are spread evenly over its copies."""
    share = np.asarray(weight, np.float64) / logcnt
    return np.take_along_axis(share, phy2log, axis=1)


def _balance(
    load: NDArray[np.float64], replicas: int, groups: int, nodes: int, gpus: int
) -> tuple[Ints, Ints]:
    """Place one layer, load [E]: the expert in each slot [R], and which copy of it that is [R]."""
    by_group = np.arange(load.size).reshape(groups, -1)
    group_at = _pack(load[by_group].sum(axis=1), nodes)
    experts, copies = [], []
    for on_node in by_group[group_at].reshape(nodes, -1):
        held, copy = _replicate(load[on_node], replicas // nodes)
        share = load[on_node] / np.bincount(held)
        slot_at = _pack(share[held], gpus // nodes)
        experts.append(on_node[held[slot_at]])
        copies.append(copy[slot_at])
    return np.concatenate(experts), np.concatenate(copies)


def _replicate(load: NDArray[np.float64], replicas: int) -> tuple[Ints, Ints]:
    """Copy the expert with the most load per copy until there are enough: expert and copy [R]."""
    held = list(range(load.size))
    copy = [0] * load.size
    count = np.ones(load.size, np.int64)
    for _ in range(replicas - load.size):
        heaviest = int(np.argmax(load / count))
        held.append(heaviest)
        copy.append(int(count[heaviest]))
        count[heaviest] += 1
    return np.array(held), np.array(copy)


def _pack(load: NDArray[np.float64], bins: int) -> Ints:
    """Pack items, load [N], into bins of N / bins items: the items in order of bin and arrival."""
    room = load.size // bins
    if room == 1:
        return np.arange(load.size)
    packed: list[list[int]] = [[] for _ in range(bins)]
    total = [0.0] * bins
    for item in np.argsort(-load, kind="stable"):
        lightest = min((b for b in range(bins) if len(packed[b]) < room), key=total.__getitem__)
        packed[lightest].append(int(item))
        total[lightest] += load[item]
    return np.array(packed).reshape(-1)


def _check(loads: NDArray[np.float64], replicas: int, groups: int, nodes: int, gpus: int) -> None:
    """Refuse loads and counts that do not fit together."""
    if loads.ndim != 2 or not loads.size or not np.isfinite(loads).all() or (loads < 0).any():
        raise UserError(
            f"weight has shape {loads.shape}, or loads that are negative or not finite; "
            "pass finite loads >= 0 of shape [layers, experts]"
        )
    experts = loads.shape[1]
    counts = {"replicas": replicas, "groups": groups, "nodes": nodes, "gpus": gpus}
    for name, count in counts.items():
        if count < 1:
            raise UserError(f"num_{name}={count} is less than 1; choose num_{name} >= 1")
    if replicas < experts:
        raise UserError(
            f"num_replicas={replicas} cannot hold {experts} experts; "
            f"choose num_replicas >= {experts}, a multiple of num_gpus={gpus}"
        )
    multiples = [
        ("experts", experts, "num_groups", groups),
        ("num_replicas", replicas, "num_gpus", gpus),
        ("num_gpus", gpus, "num_nodes", nodes),
    ]
    for name, value, unit, divisor in multiples:
        if value % divisor:
            fit = [count for count in range(1, value + 1) if value % count == 0]
            more = "" if name == "experts" else f"{name}={-(-value // divisor) * divisor}, or "
            raise UserError(f"{name}={value} is not divisible by {unit}={divisor}; choose "
                            f"{more}{unit} from {fit}")
