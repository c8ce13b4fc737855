"""All layouts of a run on a site: the fastest that fit, and why the others do not.

Tried are data x fsdp x expert x pipe, schedules, rows of a microbatch and recomputation. A layout
is one of `parallel`'s: axes multiply to all devices, experts and rows divide, FSDP and a pipeline
exclude each other.
"""

from __future__ import annotations

import collections
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from dsjax.config.fields import divisors
from dsjax.config.run import RunConfig, with_fields
from dsjax.errors import UserError
from dsjax.parallel import mesh
from dsjax.plan.cost.efficiency import Stack
from dsjax.plan.cost.room import Room, room
from dsjax.plan.cost.site import Site
from dsjax.plan.cost.step import Estimate, estimate

SCHEDULES = ("1f1b", "interleaved", "zb-h1", "zb-v", "dualpipe", "dualpipe-v")
REMAT = ("none", "v3", "full")
ROWS = (1, 2, 4)  # of a microbatch on one device
SIMULATED = 30
"""Layouts, fastest first by the closed form of the bubble, whose pipeline is simulated."""


@dataclass(frozen=True)
class Found:
    """A layout that fits."""

    run: RunConfig
    estimate: Estimate
    room: Room


@dataclass(frozen=True)
class Searched:
    """Layouts that fit, the fastest first, and the others, each with the reason."""

    found: list[Found]
    rejected: list[tuple[dict[str, dict[str, Any]], str]]

    @property
    def reasons(self) -> collections.Counter[str]:
        """Counts of the layouts that fail for each reason."""
        return collections.Counter(reason for _, reason in self.rejected)


def search(run: RunConfig, site: Site, stack: Stack) -> Searched:
    """Try all layouts of a run on all devices of a site."""
    found: list[Found] = []
    rejected: list[tuple[dict[str, dict[str, Any]], str]] = []
    for fields in _choices(run, site):
        reason, one = _tried(run, site, stack, fields)
        if one is None:
            rejected.append((fields, reason))
        else:
            found.append(one)
    found.sort(key=lambda one: one.estimate.step)
    best = [replace(one, estimate=estimate(one.run, site, stack)) for one in found[:SIMULATED]]
    best.sort(key=lambda one: one.estimate.step)
    return Searched([*best, *found[SIMULATED:]], rejected)


def _tried(run: RunConfig, site: Site, stack: Stack,
           fields: dict[str, dict[str, Any]]) -> tuple[str, Found | None]:
    """Try a layout; the reason why it fails, or what it comes to."""
    try:
        made = with_fields(run, **fields)
        layout, train = made.parallel, made.train
        mesh.check(layout, made.model, [train.batch_size], train.microbatches)
        needed = room(made, site)
        if not needed.fits:
            kind = max(needed.parts, key=lambda name: needed.parts[name])
            return f"memory: most of it {kind}", None
        return "", Found(made, estimate(made, site, stack, is_simulated=False), needed)
    except (UserError, ValueError) as error:
        return _shortly(error), None


def _shortly(error: Exception) -> str:
    """A refusal without its numbers, so that equal ones count together."""
    said = str(error).partition(";")[0]
    if "batch of" in said:
        return "rows: they do not divide over the devices and microbatches"
    if "layers do not fill" in said:
        return "layers: fewer than stages"
    return "schedule: " + said.partition("=")[0] if "=" in said else said


def _choices(run: RunConfig, site: Site) -> Iterator[dict[str, dict[str, Any]]]:
    """Fields of every layout that is tried."""
    moe = run.model.moe
    experts = divisors(moe.experts) if moe is not None else [1]
    batch = run.train.batch_size
    layers = run.model.layers + run.model.mtp_depth
    for pipe in (n for n in divisors(site.devices) if n <= layers):
        for expert in (n for n in experts if site.devices // pipe % n == 0):
            rest = site.devices // pipe // expert
            for fsdp in divisors(rest) if pipe == 1 else [1]:
                layout = {"pipe": pipe, "expert": expert, "fsdp": fsdp, "data": rest // fsdp,
                          "expert_nodes": _nodes(expert, site, moe), "interleave": False}
                for rows in ROWS:
                    each = {"microbatches": max(1, batch // (rows * site.devices // pipe))}
                    for remat in REMAT:
                        for schedule in SCHEDULES if pipe > 1 else SCHEDULES[:1]:
                            yield {"parallel": layout | {"schedule": schedule}, "train": each,
                                   "machine": {"remat": remat}}


def _nodes(expert: int, site: Site, moe: Any) -> int:
    """Nodes that the experts span, where they are as many as some groups."""
    nodes = -(-expert // site.fabric.domain)
    return nodes if moe is not None and expert % nodes == 0 and moe.groups % nodes == 0 else 1


def refuse_none(made: Searched, run: RunConfig, site: Site) -> None:
    """Raise UserError where nothing fits, with the commonest reasons."""
    if not made.found:
        common = ", ".join(f"{reason} ({n:,})" for reason, n in made.reasons.most_common(3))
        raise UserError(f"no layout of {run.name} fits {site.kind}:{site.chips}: {common}; name "
                        "more devices, a batch that divides over them, or a smaller model")
