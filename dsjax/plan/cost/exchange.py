"""Time of the exchange of tokens with their experts, with the node limit (V3 sec. 2.1.2, 3.2.2).

A token goes once to each node that holds an expert of its own, to the device of the same place, and
from there to the devices with these experts over the near links; sums come back the same way. With
routing limited to M nodes it is on at most M. Devices without far links between them, as a TPU's
torus or NVLink over 72 GPUs, send one copy to each device.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from dsjax.config.model import MoEConfig
from dsjax.config.parallel import ParallelConfig
from dsjax.plan.cost import efficiency
from dsjax.plan.cost.site import Site

SCALE_BYTES = 4 / 128  # of a number in FP8: a float32 scale every 128


@dataclass(frozen=True)
class Copies:
    """Copies that a token makes on the way out, on average; as many sums come back."""

    far: float
    near: float


def copies(moe: MoEConfig, layout: ParallelConfig, site: Site) -> Copies:
    """Expected copies of a token over far and near links, its experts drawn evenly.

    The nodes are those of the layout, or as many as the expert axis fills.
    """
    nodes = max(layout.expert_nodes, -(-layout.expert // site.fabric.domain))
    here = layout.expert // nodes
    return Copies(visited(moe, nodes) * (1 - 1 / nodes),
                  visited(moe, layout.expert) * (1 - 1 / here))


def visited(moe: MoEConfig, places: int) -> float:
    """Expected places that hold an expert of a token, of so many that share the experts in order.

    Allowed groups, and experts within them, are drawn evenly and each once. A place holds some
    groups, or is a part of one.
    """
    groups, limit = moe.groups, moe.groups_per_token
    experts = moe.experts // groups
    if places > groups:
        return places * limit / groups * _hit(moe, limit * experts, moe.experts // places)
    own = groups // places
    return places * sum(
        math.comb(own, allowed) * math.comb(groups - own, limit - allowed)
        / math.comb(groups, limit) * _hit(moe, limit * experts, allowed * experts)
        for allowed in range(1, min(own, limit) + 1))


def _hit(moe: MoEConfig, allowed: int, own: int) -> float:
    """Chance that a token has one of `own` experts, of so many that it may choose from."""
    k = moe.experts_per_token
    return 1 - math.comb(allowed - own, k) / math.comb(allowed, k)


def seconds(moe: MoEConfig, layout: ParallelConfig, site: Site, d_model: int,
            operand_bytes: int) -> float:
    """Time of one token's exchange in one layer, there and back, over the busier kind of link.

    The backward pass takes the same. Out in FP8 with scales where products read FP8, back in
    bfloat16 (V3 sec. 3.3.3).
    """
    if layout.expert == 1:
        return 0.0
    made = copies(moe, layout, site)
    out = d_model * (1 + SCALE_BYTES if operand_bytes == 1 else 2)
    each = (out + 2 * d_model) / efficiency.LINK.value
    return max(made.far * each / site.fabric.far, made.near * each / site.fabric.near)
