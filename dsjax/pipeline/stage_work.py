"""Layers on the stages of a pipeline: the place of each, and one layer as a function to be split.

A stage holds neighboring layers, as many as any other or one more; the stages that hold one less
are the last, where head, losses and MTP modules run as well (V3: 61 layers on 16 ranks). A program
is the same on every rank, so every stage has places for as many layers of each stack as any stage
holds; an empty place runs nothing.

Axes: P ranks, L layers, B rows, T time, D model, E experts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import PartitionSpec

from dsjax import params
from dsjax.config.loss import LossConfig
from dsjax.config.model import ModelConfig
from dsjax.layers.backend import Backend
from dsjax.model import block as blocks
from dsjax.model import loss as losses
from dsjax.numerics import precision
from dsjax.numerics.vary import vary
from dsjax.ops import rope
from dsjax.parallel import rules
from dsjax.parallel.mesh import AXES, PIPE
from dsjax.params import Spec, Tree
from dsjax.pipeline.instructions import Program

EVERYWHERE = (PIPE, *AXES)


@dataclasses.dataclass(frozen=True)
class StageLayout:
    """Places of the layers of one stack: a rank's chunks one after another, `size` places each."""

    size: int
    layer: np.ndarray  # [P, chunks * size] layer in each place, 0 where there is none
    count: np.ndarray  # [P, chunks] layers of a chunk
    place: np.ndarray  # [copies, L] place of each layer, counted over all ranks

    @property
    def is_full(self) -> bool:
        """True if no place is empty."""
        return bool((self.count == self.size).all())


def share(layers: int, stages: int) -> list[int]:
    """Layers of each stage."""
    least, more = divmod(layers, stages)
    return [least + (stage < more) for stage in range(stages)]


def layouts(cfg: ModelConfig, program: Program) -> dict[str, StageLayout]:
    """Lay the layers of each stack out over stages, by its name."""
    shares = share(cfg.layers, program.schedule.stages)
    ends = np.cumsum(shares)
    first = [range(end - n, end) for end, n in zip(ends, shares, strict=True)]
    found, start = {}, 0
    for stack in cfg.stacks:
        found[stack.name] = _layout(
            [[n - start for n in r if start <= n < start + stack.count] for r in first], program)
        start += stack.count
    return found


def _layout(layers_of: list[list[int]], program: Program) -> StageLayout:
    size = max(map(len, layers_of))
    ranks, chunks = len(program.stage_of), len(program.stage_of[0])
    layer = np.zeros((ranks, chunks, size), np.int32)
    count = np.zeros((ranks, chunks), np.int32)
    place = np.zeros((program.schedule.copies, sum(map(len, layers_of))), np.int32)
    for copy, home in enumerate(program.schedule.home):
        for stage, rank in enumerate(home):
            chunk = program.stage_of[rank].index(stage)
            here = layers_of[stage]
            layer[rank, chunk, : len(here)] = here
            count[rank, chunk] = len(here)
            start = (rank * chunks + chunk) * size
            place[copy, here] = np.arange(start, start + len(here))
    return StageLayout(size, layer.reshape(ranks, -1), count, place)


def mixture_layers(cfg: ModelConfig, layouts: dict[str, StageLayout]) -> dict[str, np.ndarray]:
    """Number among the mixture layers of the layer in each place [P, chunks * size], by stack."""
    found, first = {}, 0
    for stack in cfg.stacks:
        if stack.is_moe:
            found[stack.name] = layouts[stack.name].layer + np.int32(first)
            first += stack.count
    return found


def to_stages(tree: Tree, layout: StageLayout) -> Tree:
    """Lay stacked layers [L, ...] out over ranks: [P, chunks * size, ...]."""
    return jax.tree.map(lambda a: jnp.take(a, layout.layer, axis=0), tree)


def from_stages(tree: Tree, layout: StageLayout) -> Tree:
    """Add up what the copies of every layer hold: [P, chunks * size, ...] -> [L, ...]."""

    def one(a: Array) -> Array:
        flat = a.reshape(-1, *a.shape[2:])
        copies = [jnp.take(flat, place, axis=0) for place in layout.place]
        return copies[0] if len(copies) == 1 else copies[0] + copies[1]

    return jax.tree.map(one, tree)


def layer_partition(spec: Spec) -> PartitionSpec:
    """Mesh axes of a stacked leaf laid out over ranks, [P, places, ...]."""
    return PartitionSpec(PIPE, None, *list(rules.used(spec))[1:])


def quantized_partition(spec: Spec, *, is_layer: bool) -> PartitionSpec:
    """Mesh axes of the low-precision form of a leaf: its leading dims lie as the master's do."""
    entries = list(rules.used(spec))[: spec.batch_dims]
    return PartitionSpec(*([PIPE, None, *entries[1:]] if is_layer else entries))


class Side(NamedTuple):
    """Inputs of a layer besides parameters and residual stream."""

    segments: Array  # [B, T]
    rows: Array  # [] rows of the whole step that hold a real token
    quantized: Tree  # the layer's low-precision weights, or None
    routes: Array | None = None  # [B, T, K] experts to take, where they are given


Layer = Callable[[Tree, Array, Side], tuple[tuple[Array, Array], tuple[Array, Array]]]
"""p, x [B, T, D], side -> (x, balance losses []), (loads [E], extra rounds [])."""


def layer(cfg: ModelConfig, is_moe: bool, loss: LossConfig, backend: Backend) -> Layer:
    """One block as the split wants it: what has a gradient first, what is only counted second."""
    specs = blocks.block_specs(cfg, is_moe)

    def run(p: Tree, x: Array, side: Side) -> tuple[Array, ...]:
        tree = p if side.quantized is None else precision.attach(p, side.quantized, specs)
        angles = rope.angles(cfg.rope, blocks.rope_dim(cfg), jnp.arange(x.shape[1]))
        attend = blocks.prefill(angles, side.segments, cfg, backend)
        x, stats, _ = blocks.block(tree, x, attend, side.segments != 0, cfg, backend, side.routes)
        if stats is None:
            return x, jnp.zeros(()), jnp.zeros(0), jnp.zeros(())
        is_real_row = (side.segments != 0).any(axis=1)
        alone = jax.tree.map(lambda a: a[None], stats)
        balance = losses.balance_sum(alone, is_real_row, cfg, loss) / side.rows
        return x, balance, stats.loads.sum(axis=0), jnp.asarray(stats.extra_rounds)

    run = backend.remat(run)

    def both(p: Tree, x: Array, side: Side) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
        x, balance, loads, rounds = run(p, x, side)
        return (x, balance), (loads, rounds)

    return both


def quantized_specs(specs: Tree, quantized: Tree, *, is_layer: bool) -> Tree:
    """Mesh axes of each array of a tree of low-precision forms; None where there is none."""

    def one(spec: Spec, part: Tree) -> Tree:
        return jax.tree.map(lambda a: quantized_partition(spec, is_layer=is_layer), part)

    return jax.tree.map(one, specs, quantized, is_leaf=params.is_spec)


def varying(tree: Tree) -> Tree:
    """Mark every array as different on every device."""
    return jax.tree.map(lambda a: vary(a, EVERYWHERE), tree)
