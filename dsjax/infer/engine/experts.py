"""Experts of rows that must not depend on their company.

On one device every expert has room for every row. Over ranks a token goes to the devices of its
experts and back, in one round that has room for all, and there each expert's rows are multiplied in
tiles: then neither the order of a token's sum nor the shape of a product depends on what others
chose.

Axes: T tokens of this rank, K experts per token, E experts, D model.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

from dsjax.config.model import MoEConfig
from dsjax.config.parallel import ParallelConfig
from dsjax.infer.engine.place import gathered
from dsjax.numerics.precision import Matrix, value
from dsjax.numerics.wire import WireFormat
from dsjax.ops import experts as op
from dsjax.ops.expert_mlp import ExpertMLP
from dsjax.parallel import expert, mesh_backend
from dsjax.parallel.exchange import MeshAxis
from dsjax.parallel.expert import ExchangeStage, Inner
from dsjax.parallel.mesh import AXES, EXPERT, NODE


def every_row(x: Array, experts: Array, weights: Array, w_gate_up: Matrix, w_down: Matrix,
              mlp: ExpertMLP) -> tuple[Array, Array]:
    """As `Dispatch`, on one device: no row goes another way because of others."""
    assignments = value(w_down).shape[0] * x.shape[0]
    y = op.experts_batched(x, experts, weights, w_gate_up, w_down, mlp=mlp,
                           assignments=assignments)
    return y, jnp.zeros(())


def on_ranks(x: Array, experts: Array, weights: Array, w_gate_up: Matrix, w_down: Matrix,
             mlp: ExpertMLP, *, layout: ParallelConfig, moe: MoEConfig) -> tuple[Array, Array]:
    """As `Dispatch`, for the tokens of one rank, inside a program of all ranks."""
    order = jnp.argsort(experts, axis=-1)
    experts, weights = (jnp.take_along_axis(a, order, axis=-1) for a in (experts, weights))
    masters, quantized = zip(*(mesh_backend.apart(gathered(w), mlp.precision)
                               for w in (w_gate_up, w_down)), strict=True)

    def work(x: Array, experts: Array, weights: Array, masters: tuple[Array | None, ...],
             quantized: tuple[Matrix, ...]) -> tuple[Array, Array]:
        pair = [mesh_backend.together(m, q) for m, q in zip(masters, quantized, strict=True)]
        return op.experts_tiled(x, experts, weights, *pair, mlp=mlp), jnp.zeros(())

    stage = _one_round(x.shape[0], work, layout, moe, mlp.precision.wire)
    return expert.routed(stage, x, experts, weights, masters, quantized)


def _one_round(tokens: int, work: Inner, layout: ParallelConfig, moe: MoEConfig,
               wire: WireFormat) -> ExchangeStage:
    """The exchange of a layer with room for all tokens of all ranks."""
    nodes, is_ragged = layout.expert_nodes, layout.exchange == "ragged"
    within = ExchangeStage(MeshAxis(EXPERT, AXES, is_ragged), layout.expert // nodes,
                           moe.experts // nodes, nodes * tokens, wire, work)
    if nodes == 1:
        return within
    return ExchangeStage(MeshAxis(NODE, AXES, is_ragged), nodes, moe.experts, tokens, wire, within)
