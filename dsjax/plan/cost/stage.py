"""Work of one device on one stage: seconds of a microbatch by what they go to.

A device's time is the sum over its layers of what products and what memory take, over the shares of
`efficiency`; exchanges of tokens and gathers of FSDP stand apart, as they may run beside that.

Letters: F forward, B input gradient, W weight gradient, of one microbatch on one stage.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, fields

from dsjax.config.model import MLAConfig
from dsjax.config.run import RunConfig
from dsjax.errors import UserError
from dsjax.plan.cost import efficiency, exchange, work
from dsjax.plan.cost.efficiency import Stack
from dsjax.plan.cost.site import Site
from dsjax.plan.cost.work import Layer, Work

ACCUMULATED = 8  # of a weight's gradient in float32, read and written for each microbatch


@dataclass(frozen=True)
class Passes:
    """Seconds of the passes of a microbatch."""

    f: float = 0.0
    b: float = 0.0
    w: float = 0.0

    def __add__(self, other: Passes) -> Passes:
        return Passes(self.f + other.f, self.b + other.b, self.w + other.w)

    def __mul__(self, factor: float) -> Passes:
        return Passes(self.f * factor, self.b * factor, self.w * factor)

    @property
    def whole(self) -> float:
        """All three."""
        return self.f + self.b + self.w


@dataclass(frozen=True)
class Stage:
    """Seconds of a microbatch on one stage, by what they go to."""

    products: Passes
    core: Passes
    memory: Passes
    again: Passes
    exchange: float  # of one direction: forward, and again backward
    gather: float  # of the weights that FSDP cuts, for each pass

    @property
    def work(self) -> Passes:
        """All that keeps the device itself busy."""
        return self.products + self.core + self.memory + self.again

    def __add__(self, other: Stage) -> Stage:
        return Stage(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def __mul__(self, factor: float) -> Stage:
        return Stage(*(getattr(self, f.name) * factor for f in fields(self)))


@functools.lru_cache(maxsize=64)
def cut(whole: Work, stages: int) -> list[list[Layer | None]]:
    """Cut the layers into contiguous stages whose longest is shortest; None is the head, last.

    Raises UserError where there are more stages than layers.
    """
    if stages > len(whole.layers):
        raise UserError(f"{len(whole.layers)} layers do not fill {stages} stages; choose a smaller "
                        "--parallel.pipe")
    items: list[Layer | None] = [*whole.layers, None]
    weights = [whole.head * whole.heads if item is None else item.flops for item in items]
    least, most = max(weights), sum(weights)
    for _ in range(60):
        middle = (least + most) / 2
        if len(_fill(items, weights, middle)) <= stages:
            most = middle
        else:
            least = middle
    made = _fill(items, weights, most)
    while len(made) < stages:  # as many as asked: the fullest in two
        fullest = max(range(len(made)), key=lambda i: len(made[i]))
        half = len(made[fullest]) // 2
        made[fullest : fullest + 1] = [made[fullest][:half], made[fullest][half:]]
    return made


def _fill(items: Sequence[Layer | None], weights: Sequence[float],
          most: float) -> list[list[Layer | None]]:
    made: list[list[Layer | None]] = [[]]
    filled = 0.0
    for item, weight in zip(items, weights, strict=True):
        if made[-1] and filled + weight > most * (1 + 1e-12):
            made.append([])
            filled = 0.0
        made[-1].append(item)
        filled += weight
    return made


def stage(run: RunConfig, site: Site, stack: Stack, part: Sequence[Layer | None], whole: Work,
           tokens: int) -> Stage:
    """Time a stage for a microbatch of so many tokens of a device."""
    layers = [layer for layer in part if layer is not None]
    heads = whole.heads if None in part else 0
    narrow, wide = rates(run, site)
    product = sum(layer.product for layer in layers) / narrow + (
        sum(layer.wide for layer in layers) + heads * whole.head) / wide
    core = sum(layer.core for layer in layers) / site.chip.bf16
    rate = site.bandwidth * efficiency.MEMORY.value
    read = stack.quantize_passes - 1 if run.precision.operand_bytes == 1 else 0
    stream = {"float32": 4, "bfloat16": 2}[run.precision.activations] / work.WIDE
    moved = stream * sum(layer.moved for layer in layers) / rate
    moved += read * 2 * sum(_operands(layer, run) for layer in layers) / rate
    held = sum(layer.shared + layer.routed / run.parallel.expert for layer in layers)
    weights = held * run.precision.operand_bytes / rate
    products = Passes(product, product, product) * tokens
    scores = Passes(core / efficiency.CORE.value, core * work.BACKWARD_CORE
                    / efficiency.CORE_BACKWARD.value) * tokens
    memory = Passes(moved, 1.5 * moved, 0.7 * moved) * tokens + Passes(
        weights, weights, held * ACCUMULATED / rate)
    moe_layers = sum(layer.is_moe for layer in layers)
    over = 0.0
    if run.model.moe is not None:
        over = exchange.seconds(run.model.moe, run.parallel, site, run.model.d_model,
                                run.precision.operand_bytes)
    fsdp = run.parallel.fsdp
    near = min(site.fabric.near if fsdp <= site.fabric.domain else site.fabric.far,
               site.fabric.near) * efficiency.LINK.value
    return Stage(products, scores, memory, _again(run, products, scores, memory),
                 moe_layers * tokens * over, held * 2 * (1 - 1 / fsdp) / near)


def _operands(layer: Layer, run: RunConfig) -> float:
    """Numbers of a token that a layer's products read, about: what an amax is sought in."""
    d = run.model.d_model
    moe = run.model.moe if layer.is_moe else None
    paths = 1 if moe is None else moe.experts_per_token + moe.shared_experts
    hidden = run.model.dense_dim if moe is None else paths * moe.expert_dim
    return 3.0 * d + paths * d + hidden


def _again(run: RunConfig, products: Passes, core: Passes, memory: Passes) -> Passes:
    """Work that recomputation adds to the backward pass (dsjax.layers.remat)."""
    if run.machine.remat == "none":
        return Passes()
    if run.machine.remat == "full":
        return Passes(b=products.f + core.f + memory.f)
    a = run.model.attention
    up = 0.0
    if isinstance(a, MLAConfig):
        numbers = a.heads * (a.kv_rank * (a.nope_dim + a.value_dim) + (a.q_rank or 0) * a.qk_dim)
        layer = work.of(run.model, run.train.seq_len, run.precision.operand_bytes).layers[-1]
        up = 2.0 * numbers / layer.product
    return Passes(b=up * products.f + 0.4 * memory.f)


def rates(run: RunConfig, site: Site) -> tuple[float, float]:
    """FLOP/s of the run's products, and of those that stay wide."""
    chip, share = site.chip, efficiency.PRODUCT.value
    if run.precision.operand_bytes == 4:
        if chip.wide is None:
            raise UserError("float32 products have no rate on a data sheet; use --precision bf16 "
                            "or fp8")
        return chip.wide * share, chip.wide * share
    narrow = chip.fp8 if run.precision.matmul == "fp8" and chip.fp8 else chip.bf16
    return narrow * share, chip.bf16 * share
