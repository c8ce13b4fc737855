"""Bytes of a device in training, by kind, on any layout and schedule; nothing is compiled.

Of a pipeline the rank counts that holds most. Masters and moments rest cut over all copies (ZeRO-1)
where the layout says so; experts have fewer copies than other matrices. Activations are what remat
keeps of a token (dsjax.runtime.needs), times the microbatches that are alive at once (V3 Table 2).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dsjax.config.run import RunConfig
from dsjax.pipeline.schedules.simulate import formula_activations
from dsjax.pipeline.schedules.table import Schedule
from dsjax.plan.cost import work
from dsjax.plan.cost.site import Site
from dsjax.plan.cost.stage import cut
from dsjax.plan.cost.step import PAIRED, outline
from dsjax.plan.cost.work import Layer
from dsjax.runtime import needs

SCALES = 1 + 4 / 128**2  # bytes of an FP8 weight with its share of a float32 scale
SPARE = 0.08
"""Share of a device's memory that is left to allocators and libraries: assumed."""


@dataclass(frozen=True)
class Room:
    """Bytes of one device at the fullest moment."""

    weights: float
    gradients: float
    masters: float
    moments: float
    activations: float
    logits: float
    exchange: float
    """Tokens on their way to experts and back."""
    limit: float
    """Bytes that a device has for all of this."""

    @property
    def parts(self) -> dict[str, float]:
        """All kinds by name."""
        return {name: getattr(self, name) for name in (
            "weights", "gradients", "masters", "moments", "activations", "logits", "exchange")}

    @property
    def total(self) -> float:
        """All kinds together."""
        return sum(self.parts.values())

    @property
    def fits(self) -> bool:
        """True where a device has so much."""
        return self.total <= self.limit


def room(run: RunConfig, site: Site, chunks: int | None = None) -> Room:
    """Count the bytes of a run's fullest device on a site."""
    layout, train, model = run.parallel, run.train, run.model
    whole = work.of(model, train.seq_len, run.precision.operand_bytes)
    schedule = outline(run, chunks)
    parts = cut(whole, 1 if schedule is None else schedule.stages)
    tokens = train.batch_size * train.seq_len // (train.microbatches * layout.row_devices)
    ranks = _ranks(parts, schedule)
    own = max(ranks, key=lambda rank: sum(_numbers(rank, whole.ends, layout.expert)))
    shared, routed = _numbers(own, whole.ends, layout.expert)
    copies = 2 if schedule is not None and schedule.name in PAIRED else 1
    operand = {1: SCALES}.get(run.precision.operand_bytes, run.precision.operand_bytes)
    used = (shared + routed) / layout.fsdp + _layer_at_once(own, run) * (layout.fsdp > 1)
    if layout.use_zero:
        resting = shared / (layout.row_devices * copies) + routed * layout.expert / (
            layout.row_devices * copies)
    else:
        resting = (shared + routed) / layout.fsdp
    moment = 8 if run.optimizer.moments == "float32" else 4
    live = 1.0 if schedule is None else _live(schedule)
    kept = sum(_kept(layer, run) for layer in own)
    stages = 1 if schedule is None else schedule.stages / schedule.ranks
    again = needs.kept_of_a_token(run, model.moe, "none") - needs.kept_of_a_token(
        run, model.moe, run.machine.remat)
    return Room(
        weights=copies * used * operand,
        gradients=copies * (shared + routed) / layout.fsdp * 4,
        masters=resting * 4 * copies, moments=resting * moment * copies,
        activations=tokens * (live * kept / stages + again),
        logits=tokens / train.seq_len * needs.CHUNK * model.vocab * 4,
        exchange=0.0 if layout.expert == 1 else 2 * tokens * layout.capacity_factor * _sent(run),
        limit=site.chip.memory * (1 - SPARE))


def _sent(run: RunConfig) -> float:
    """Bytes of a token on its way out and back, at the device of each of its experts."""
    moe = run.model.moe
    out = min(run.precision.operand_bytes, 2)
    return 0.0 if moe is None else moe.experts_per_token * run.model.d_model * (out + 2)


def _ranks(parts: Sequence[Sequence[Layer | None]],
           schedule: Schedule | None) -> list[list[Layer | None]]:
    """Layers of each rank, one copy of each stage."""
    if schedule is None:
        return [list(parts[0])]
    return [[layer for stage, home in enumerate(schedule.home[0]) if home == rank
             for layer in parts[stage]] for rank in range(schedule.ranks)]


def _numbers(rank: Sequence[Layer | None], ends: int, experts: int) -> tuple[float, float]:
    """Numbers of a rank: of matrices that its devices all hold, and of its share of experts.

    Embedding and head lie on the first and the last rank; each is half of the ends.
    """
    layers = [layer for layer in rank if layer is not None]
    held = ends if len(layers) < len(rank) else 0.0
    return sum(layer.shared for layer in layers) + held, sum(
        layer.routed for layer in layers) / experts


def _layer_at_once(rank: Sequence[Layer | None], run: RunConfig) -> float:
    """Numbers of the largest layer, which FSDP gathers whole."""
    return max((layer.shared + layer.routed / run.parallel.expert for layer in rank
                if layer is not None), default=0.0)


def _kept(layer: Layer | None, run: RunConfig) -> float:
    """Bytes that a layer keeps of a token for its backward pass."""
    if layer is None:
        return 0.0
    return needs.kept_of_a_token(run, run.model.moe if layer.is_moe else None, run.machine.remat)


def _live(schedule: Schedule) -> float:
    """Microbatches alive at once on the fullest rank, in units of one stage."""
    return float(formula_activations(schedule))
