"""Time of one training step on a site: products, memory, links, pipeline and optimizer.

Exchanges of tokens and gathers of FSDP run beside a device's own work where the stack or the
schedule hides them, and count where they are longer. A pipeline's time is simulated by
`dsjax.pipeline.schedules` with the times of its slowest rank.

Letters: F forward, B input gradient, W weight gradient, of one microbatch on one stage.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace

from dsjax.config.run import RunConfig
from dsjax.model.count import training_flops
from dsjax.pipeline.schedules.build import build
from dsjax.pipeline.schedules.simulate import Times, formula_bubble, simulate
from dsjax.pipeline.schedules.table import Schedule
from dsjax.plan.cost import efficiency, work
from dsjax.plan.cost.efficiency import Stack
from dsjax.plan.cost.site import Site
from dsjax.plan.cost.stage import Passes, Stage, cut, stage
from dsjax.plan.cost.work import Work

UPDATE_BYTES = 16
"""Bytes of a number that AdamW reads and writes beside moments: master twice, gradient, weight."""
PAIRED = ("dualpipe", "dualpipe-v")  # whose cells lay a forward beside a backward


@dataclass(frozen=True)
class Estimate:
    """A step's time and its parts, in seconds."""

    products: float
    core: float
    """Scores and values of attention."""
    memory: float
    """Norms, rotation, quantization, permutation; weights and their gradients."""
    again: float
    """Work that the backward pass does again."""
    overhead: float
    """Time that the stack adds to the four above."""
    links: float
    """Exchanges and gathers that are not hidden."""
    bubble: float
    """The pipeline's, and its stages' inequality."""
    optimizer: float
    tokens: int
    """Of a step."""
    flops: float
    """Useful ones of a step, causal, MTP included."""

    @property
    def step(self) -> float:
        """The whole step."""
        return (self.products + self.core + self.memory + self.again + self.overhead + self.links
                + self.bubble + self.optimizer)


def estimate(run: RunConfig, site: Site, stack: Stack, chunks: int | None = None, *,
             is_simulated: bool = True) -> Estimate:
    """Predict the time of a run's step.

    chunks: stages of a rank, of the schedule interleaved. is_simulated: False takes the closed form
    of a pipeline's bubble, which is a thousand times faster. Raises UserError where the site's
    chips have no rate for the run's precision.
    """
    layout, train = run.parallel, run.train
    whole = work.of(run.model, train.seq_len, run.precision.operand_bytes)
    tokens = train.batch_size * train.seq_len
    each = tokens // (train.microbatches * layout.row_devices)
    schedule = outline(run, chunks)
    stages = 1 if schedule is None else schedule.stages
    parts = [stage(run, site, stack, part, whole, each) for part in cut(whole, stages)]
    mean = sum(part.work.whole for part in parts) / layout.pipe * train.microbatches
    if schedule is None:
        busy = stack_time(parts[0].work, stack).whole
        is_hidden = stack.is_hidden or layout.interleave
        links = max(0.0, _links(parts[0]) - is_hidden * busy)
        makespan = train.microbatches * (busy + links)
        links *= train.microbatches
    else:
        of_ranks = [_times(schedule, part, stack, run, site, each)
                    for part in _by_rank(parts, schedule)]
        times = max(of_ranks, key=lambda t: _cell(schedule, t))
        makespan = _pipelined(schedule, times) if is_simulated else _by_formula(schedule, times)
        links = 0.0  # within the pipeline's cells
    ideal = mean / stack.reached / (1 - stack.for_exchange)
    product, core, memory, again = (
        _sum(parts, name) * train.microbatches / layout.pipe
        for name in ("products", "core", "memory", "again"))
    return Estimate(
        product, core, memory, again, overhead=ideal - mean, links=links,
        bubble=makespan - ideal - links, optimizer=_optimizer(run, site, whole), tokens=tokens,
        flops=tokens * _flops(run.model, train.seq_len))


_flops = functools.lru_cache(maxsize=16)(training_flops)


def outline(run: RunConfig, chunks: int | None) -> Schedule | None:
    """The schedule of a run's pipeline without its table; None where there is no pipeline.

    Raises UserError where the schedule does not take the microbatches.
    """
    layout, name, count = run.parallel, run.parallel.schedule, run.train.microbatches
    if layout.pipe == 1:
        return None
    if (name == "interleaved" and count % layout.pipe) or (
            name in PAIRED and (count % 2 or count < 2 * layout.pipe)):
        build(name, layout.pipe, count, chunks=chunks)  # which refuses them
    return replace(_built(name, layout.pipe, 2 * layout.pipe, chunks), microbatches=count, table=())


def _by_rank(parts: Sequence[Stage], schedule: Schedule | None) -> list[Stage]:
    """The mean stage of each rank: one holds a stage of each chunk, or of each direction."""
    if schedule is None:
        return list(parts)
    made = []
    for rank in range(schedule.ranks):
        own = [parts[stage] for home in schedule.home for stage, at in enumerate(home)
               if at == rank]
        made.append(functools.reduce(lambda a, b: a + b, own) * (1 / len(own)))
    return made


def _sum(parts: Sequence[Stage], name: str) -> float:
    return sum(getattr(part, name).whole for part in parts)


def stack_time(passes: Passes, stack: Stack) -> Passes:
    """Passes as a stack runs them: with its overhead, on the multiprocessors that it leaves."""
    return passes * (1 / stack.reached / (1 - stack.for_exchange))


def _links(stage: Stage) -> float:
    """Seconds of a microbatch on the links: exchanges, and gathers of what FSDP cuts."""
    return 2 * stage.exchange + 4 * stage.gather  # weights forward and backward, and gradients


def _cell(schedule: Schedule, times: Times) -> float:
    """Time that a microbatch takes of a stage once the pipeline is full."""
    return times.pair if schedule.name in PAIRED else times.forward + times.backward


def _times(schedule: Schedule, stage: Stage, stack: Stack, run: RunConfig, site: Site,
           tokens: int) -> Times:
    """Times of a stage's cells, for microbatches of so many tokens of a device."""
    busy, over = stack_time(stage.work, stack), stage.exchange
    transfer = tokens * run.model.d_model * 2 / (site.fabric.far * efficiency.LINK.value)
    if schedule.name in PAIRED:
        return Times(busy.f + over, busy.b + over, busy.w, max(busy.whole, 2 * over), transfer)
    if stack.is_hidden or run.parallel.interleave:
        return Times(max(busy.f, over), max(busy.b, over - busy.w), busy.w, None, transfer)
    return Times(busy.f + over, busy.b + over, busy.w, None, transfer)


STEADY = 6
"""Rounds of a pipeline after which another microbatch adds the same time as the one before."""


def _pipelined(schedule: Schedule, times: Times) -> float:
    """Makespan of a schedule; of many microbatches what each adds once the pipeline is full."""
    name, ranks, count = schedule.name, schedule.ranks, schedule.microbatches
    chunks = schedule.stages // ranks if name == "interleaved" else None
    most = STEADY * ranks
    if count <= 2 * most:
        return simulate(_built(name, ranks, count, chunks), times).makespan
    few, more = (simulate(_built(name, ranks, some, chunks), times).makespan
                 for some in (most, 2 * most))
    return few + (more - few) / most * (count - most)


def _by_formula(schedule: Schedule, times: Times) -> float:
    """Makespan of a schedule by the closed form of its bubble."""
    cells = schedule.microbatches * schedule.stages / schedule.ranks
    full = cells * _cell(schedule, times)
    return full + formula_bubble(schedule, times)


@functools.lru_cache(maxsize=64)
def _built(name: str, ranks: int, microbatches: int, chunks: int | None) -> Schedule:
    return build(name, ranks, microbatches, chunks=chunks)


def _optimizer(run: RunConfig, site: Site, whole: Work) -> float:
    """AdamW over what rests on a device, and the weights that a device then gathers."""
    layout = run.parallel
    resting = whole.numbers / (layout.devices if layout.use_zero else layout.fsdp * layout.pipe)
    moments = 8 if run.optimizer.moments == "float32" else 4
    update = resting * (UPDATE_BYTES + 2 * moments) / (site.bandwidth * efficiency.MEMORY.value)
    if layout.devices == 1:
        return update
    routed = sum(layer.routed for layer in whole.layers)
    copies = 2 if layout.pipe > 1 and layout.schedule in PAIRED else 1
    held = copies * ((whole.numbers - routed) + routed / layout.expert) / layout.pipe / layout.fsdp
    link = site.fabric.far if layout.devices > site.fabric.domain else site.fabric.near
    return update + 2 * held / (link * efficiency.LINK.value)
