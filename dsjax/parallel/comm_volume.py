"""Bytes that an exchange of tokens puts on each kind of link, counted from the choices themselves.

Links within a node are fast, between nodes slow (V3 report sec. 3.2.2: NVLink 160 GB/s, InfiniBand
50 GB/s). An all-to-all of one stage sends a token once to each device of another node that holds
any of its experts; one of two stages once to each such node, to the device of the same place, and
from there on within the node. With routing limited to M nodes a token is on at most M.

Axes: T tokens in order of their devices, K experts per token, E experts in order of theirs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dsjax.numerics.wire import RowFormat, WireFormat


@dataclass(frozen=True)
class Traffic:
    """Copies a token makes on the way out, on average; as many sums come back."""

    slow: float  # between nodes
    fast: float  # within a node
    most_nodes: int  # that hold experts of one token

    def bytes(self, wire: WireFormat, d_model: int, per_token: int,
              itemsize: int) -> dict[str, int]:
        """Bytes a token puts on slow and on fast links, forward, in both directions.

        The backward pass moves the same: gradients out, sums of gradients back.
        """
        def row(form: RowFormat) -> int:
            return form.row_bytes(d_model, itemsize)

        choices = per_token * (4 + 4)  # numbers and weights of the experts
        each = row(wire.out) + choices + row(wire.back)
        return {"slow": round(self.slow * each), "fast": round(self.fast * each)}


def count(experts: np.ndarray, total: int, devices: int, nodes: int, stages: int) -> Traffic:
    """Count a layer's copies. experts [T, K] of `total`, on `devices` devices of `nodes` nodes."""
    tokens = experts.shape[0]
    own = np.arange(tokens) * devices // tokens
    here = devices // nodes  # devices of a node
    on_device = np.zeros((tokens, devices), bool)
    on_device[np.arange(tokens)[:, None], experts // (total // devices)] = True
    on_node = on_device.reshape(tokens, nodes, here)
    is_away = np.arange(nodes)[None] != (own // here)[:, None]
    visited = on_node.any(2)
    if stages == 1:
        slow = (on_node & is_away[:, :, None]).sum()
        at_home = on_node & ~is_away[:, :, None]
        fast = at_home.sum() - on_device[np.arange(tokens), own].sum()
    else:
        slow = (visited & is_away).sum()
        is_mine = np.arange(here)[None] == (own % here)[:, None]  # the place it arrives at
        fast = (on_node & ~is_mine[:, None, :]).sum()
    return Traffic(float(slow) / tokens, float(fast) / tokens, int(visited.sum(1).max()))
