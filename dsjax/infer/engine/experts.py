"""Experts of rows that must not depend on their company, and their copies.

On one device every expert is computed for every row. Over ranks a token goes to the devices of its
experts and back, in one round that has room for all, and there each expert's rows are multiplied in
tiles: then neither the order of a token's sum nor the shape of a product depends on what others
chose.

Where loads are known, the busiest experts get copies and all are spread over the ranks of
`expert` so that these are about as busy (EPLB, V3 report sec. 3.4). Copies are equal, but a plan
says which experts' outputs are added up on one device, so that sums round as the plan is. It is
made before the first request, and kept.

Axes: T tokens of this rank, K experts per token, E experts, P physical experts, C copies at most, D
model, L layers with a mixture.
"""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import NDArray

from dsjax.config.model import ModelConfig
from dsjax.config.parallel import ParallelConfig
from dsjax.errors import UserError
from dsjax.infer.engine.place import Place, gathered
from dsjax.layers.moe import MoEParams
from dsjax.layers.replicas import Replicas
from dsjax.model.transformer import TransformerParams
from dsjax.numerics.precision import Matrix
from dsjax.numerics.wire import WireFormat
from dsjax.ops import experts as op
from dsjax.ops.expert_mlp import ExpertMLP
from dsjax.parallel import eplb, expert, mesh_backend
from dsjax.parallel.exchange import MeshAxis
from dsjax.parallel.expert import ExchangeStage, Inner
from dsjax.parallel.mesh import AXES, EXPERT, NODE


def every_row(x: Array, experts: Array, weights: Array, w_gate_up: Matrix, w_down: Matrix,
              mlp: ExpertMLP) -> tuple[Array, Array]:
    """As `Dispatch`, on one device: no row goes another way because of others."""
    return op.experts_dense(x, experts, weights, w_gate_up, w_down, mlp=mlp), jnp.zeros(())


def on_ranks(x: Array, experts: Array, weights: Array, w_gate_up: Matrix, w_down: Matrix,
             mlp: ExpertMLP, *, layout: ParallelConfig) -> tuple[Array, Array]:
    """As `Dispatch`, for the tokens of one rank, inside a program of all ranks."""
    order = jnp.argsort(experts, axis=-1)
    experts, weights = (jnp.take_along_axis(a, order, axis=-1) for a in (experts, weights))
    masters, quantized = zip(*(mesh_backend.apart(gathered(w), mlp.precision)
                               for w in (w_gate_up, w_down)), strict=True)

    def work(x: Array, experts: Array, weights: Array, masters: tuple[Array | None, ...],
             quantized: tuple[Matrix, ...]) -> tuple[Array, Array]:
        pair = [mesh_backend.together(m, q) for m, q in zip(masters, quantized, strict=True)]
        return op.experts_tiled(x, experts, weights, *pair, mlp=mlp), jnp.zeros(())

    count = jax.tree.leaves(w_down)[0].shape[0] * layout.expert
    stage = _one_round(x.shape[0], count, work, layout, mlp.precision.wire)
    return expert.routed(stage, x, experts, weights, masters, quantized)


def _one_round(tokens: int, experts: int, work: Inner, layout: ParallelConfig,
               wire: WireFormat) -> ExchangeStage:
    """The exchange of a layer with room for all tokens of all ranks; `experts` are physical."""
    nodes, is_ragged = layout.expert_nodes, layout.exchange == "ragged"
    within = ExchangeStage(MeshAxis(EXPERT, AXES, is_ragged), layout.expert // nodes,
                           experts // nodes, nodes * tokens, wire, work)
    if nodes == 1:
        return within
    return ExchangeStage(MeshAxis(NODE, AXES, is_ragged), nodes, experts, tokens, wire, within)


@dataclass(frozen=True)
class Placement:
    """Physical experts of every layer, in order of the devices that hold them."""

    of: NDArray[np.int64]  # [L, P] the expert that each holds
    slots: NDArray[np.int64]  # [L, E, C] those that hold each expert, 0 beyond its count
    counts: NDArray[np.int64]  # [L, E]
    devices: int  # that share the experts

    def busiest(self, loads: NDArray[np.float64]) -> float:
        """Load of the busiest device over the mean one, mean over layers; loads [L, P]."""
        by_device = loads.reshape(len(loads), self.devices, -1).sum(-1)
        return float((by_device.max(1) / np.maximum(by_device.mean(1), 1e-9)).mean())

    def logical(self, loads: NDArray[np.float64]) -> NDArray[np.float64]:
        """Loads [L, E] of experts, of those [L, P] of physical ones."""
        out = np.zeros(self.counts.shape)
        for layer, held, of_layer in zip(out, self.of, loads, strict=True):
            np.add.at(layer, held, of_layer)
        return out


def in_order(cfg: ModelConfig, devices: int) -> Placement:
    """One copy of every expert, in order."""
    assert cfg.moe is not None, "a mixture has experts"
    layers = sum(stack.count for stack in cfg.stacks if stack.is_moe)
    each = np.broadcast_to(np.arange(cfg.moe.experts), (layers, cfg.moe.experts))
    return Placement(each, each[..., None], np.ones_like(each), devices)


def planned(loads: NDArray[np.float64], redundant: int, cfg: ModelConfig,
            layout: ParallelConfig) -> Placement:
    """Copy the busiest of measured loads [L, E] or more rows, those of MTP modules, left out."""
    single = in_order(cfg, layout.expert)
    layers, count = single.counts.shape
    if loads.ndim != 2 or len(loads) < layers or loads.shape[1] != count:
        raise UserError(f"loads of {' x '.join(map(str, loads.shape))} layers and experts are not "
                        f"of this model, which has {layers} x {count}; give those of a run of it")
    if (count + redundant) % layout.expert:
        more = -(-redundant // layout.expert) * layout.expert
        raise UserError(f"{count} experts and {redundant} redundant ones do not divide over "
                        f"--parallel.expert {layout.expert}; use {more} redundant ones")
    assert cfg.moe is not None, "a mixture has experts"
    held, slots, counts = eplb.rebalance_experts(
        loads[:layers], count + redundant, cfg.moe.groups, layout.expert_nodes, layout.expert)
    return Placement(held, np.maximum(slots, 0), counts, layout.expert)


def with_copies(p: TransformerParams, placement: Placement, place: Place) -> TransformerParams:
    """Put physical experts in place of every layer's own; layers are written out.

    A module that drafts keeps its experts as they are.
    """
    stacks, at = dict(p.stacks), 0
    for name, stack in p.stacks.items():
        ffn = stack.ffn
        if not isinstance(ffn, MoEParams):
            continue
        where = jax.tree.map(lambda a: a.sharding, ffn.experts)
        of, slots, counts = (place.everywhere(np.asarray(a[at : at + 1], np.int32))
                             for a in (placement.of, placement.slots, placement.counts))
        copied = _copier(jax.tree.structure(where), tuple(jax.tree.leaves(where)))
        changed = dataclasses.replace(ffn, experts=copied(ffn.experts, of[0]),
                                      replicas=Replicas(slots, counts, of))
        stacks[name], at = dataclasses.replace(stack, ffn=changed), at + 1
    return p.replace(stacks=stacks)


@functools.lru_cache(maxsize=4)
def _copier(structure: Any, shardings: tuple[Any, ...]) -> Any:
    """A program that takes experts [1, E, ...] by number, onto the devices of their places."""
    return jax.jit(lambda tree, of: jax.tree.map(lambda a: jnp.take(a, of, axis=1), tree),
                   out_shardings=jax.tree.unflatten(structure, shardings))


LOOK = 64
"""Steps between two looks at the loads of experts."""


class Loads:
    """Loads of experts, counted on the devices and read now and then."""

    def __init__(self, device: Any):
        """Read from an engine's device."""
        self._device = device
        self._measured: Any = None
        self._steps = 0  # since they were last counted
        self.logical: NDArray[np.float64] | None = None  # [L, E]
        self._total: NDArray[np.float64] | None = None  # [L, P]
        self.busiest = self.busiest_in_order = 0.0

    def after(self, has_started: bool, is_busy: bool) -> None:
        """Count a step; what is read was measured long ago, but where there is nothing to do."""
        if self._device.placement is None:
            return
        self._steps += has_started
        if self._steps < LOOK and (is_busy or not self._steps):
            return
        self._take()
        self._measured, self._steps = self._device.measure(), 0
        if not is_busy:
            self._take()

    def _take(self) -> None:
        if self._measured is None:
            return
        more, self._measured = self._device.loads_of(self._measured), None
        self._total = more if self._total is None else self._total + more
        placement = self._device.placement
        assert placement is not None, "devices share the experts"
        self.busiest = placement.busiest(self._total)
        self.logical = placement.logical(self._total)
        self.busiest_in_order = in_order(self._device.cfg, placement.devices).busiest(self.logical)
