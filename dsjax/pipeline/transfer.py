"""Between the ranks of a pipeline: what a slot made goes to neighbors, what they made arrives.

A collective needs all ranks at once, so every rank sends both ways whenever the table has anyone
send that way; instructions say who keeps it.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from jax import Array, lax

from dsjax.parallel.mesh import PIPE
from dsjax.pipeline.buffers import Rank, State, put


def travel(rank: Rank, value: Array, name: str) -> dict[str, Array]:
    """What a rank made, and what its neighbors did where the table has them send it.

    name: y or dx. Runs where all ranks run it.
    """
    ranks = len(rank.program.stage_of)
    up = [(r, (r + 1) % ranks) for r in range(ranks)]
    down = [(there, here) for here, there in up]
    ways = {way: pairs for way, pairs in (("up", up), ("down", down)) if _is_used(rank, name, way)}
    return {"here": value} | {way: lax.ppermute(value, PIPE, p) for way, p in ways.items()}


def arrive(rank: Rank, state: State, now: Any, y: dict[str, Array],
           dx: dict[str, Array]) -> State:
    """Keep what was sent here, and an own last output for its own backward."""

    def receive(box: Array, parts: dict[str, Array], name: str) -> Array:
        for way, sent in parts.items():
            if _is_used(rank, name, way):
                place = getattr(now, f"{name}_{way}")
                box = put(box, place, sent, place >= 0)
        return box

    gradient_box = receive(state.inbox_gradient, dx, "dx")
    gradient_box = put(gradient_box, now.y_last, y["here"], now.y_last >= 0)
    return dataclasses.replace(state, inbox_x=receive(state.inbox_x, y, "y"),
                               inbox_gradient=gradient_box)


def _is_used(rank: Rank, name: str, way: str) -> bool:
    """Whether the table has any rank receive this that way."""
    return bool((getattr(rank.program.instructions, f"{name}_{way}") >= 0).any())
