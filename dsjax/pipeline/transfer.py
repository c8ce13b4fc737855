"""Between the ranks of a pipeline: values of a tick go to neighbors, theirs arrive.

A collective needs all ranks at once, so every rank sends both ways whenever the table has anyone
send that way; instructions say who keeps it.
"""

from __future__ import annotations

import dataclasses

from jax import Array, lax

from dsjax.parallel.mesh import PIPE
from dsjax.pipeline.buffers import Rank, State, put_if_any
from dsjax.pipeline.instructions import Instructions


def send(rank: Rank, value: Array, name: str) -> dict[str, Array]:
    """Return a rank's own value, and those of its neighbors where the table has them send it.

    name: y or dx. Runs where all ranks run it.
    """
    ranks = len(rank.program.stage_of)
    up = [(r, (r + 1) % ranks) for r in range(ranks)]
    down = [(there, here) for here, there in up]
    ways = {way: pairs for way, pairs in (("up", up), ("down", down)) if _is_used(rank, name, way)}
    return {"here": value} | {way: lax.ppermute(value, PIPE, p) for way, p in ways.items()}


def receive(rank: Rank, state: State, now: Instructions, y: dict[str, Array],
            dx: dict[str, Array]) -> State:
    """Keep what was sent here, and an own last output for its own backward."""

    def kept(box: Array, values: dict[str, Array], name: str) -> Array:
        for way, value in values.items():
            if _is_used(rank, name, way):
                box = put_if_any(box, getattr(now, f"{name}_{way}"), value)
        return box

    gradient_box = put_if_any(kept(state.inbox_gradient, dx, "dx"), now.y_last, y["here"])
    return dataclasses.replace(state, inbox_x=kept(state.inbox_x, y, "y"),
                               inbox_gradient=gradient_box)


def _is_used(rank: Rank, name: str, way: str) -> bool:
    """Return True if the table has any rank receive this that way."""
    return bool((getattr(rank.program.instructions, f"{name}_{way}") >= 0).any())
