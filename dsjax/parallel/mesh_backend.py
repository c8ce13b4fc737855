"""A backend for a mesh: the single device's functions, told where their operands lie.

Layers stay as they are. `Layout` says where activations lie, gathers the parts of a weight that
`fsdp` holds, and moves a tree of parameters between where it rests and where a step uses it;
`dispatch` sends tokens to their experts' devices (expert.py) in one
shard_map that is manual over the whole mesh and checks what varies over it.

Axes: T tokens, K experts per token, E experts, D model, F expert hidden.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import Mesh, PartitionSpec

from dsjax import params
from dsjax.config.model import ModelConfig, MoEConfig
from dsjax.config.parallel import ParallelConfig
from dsjax.layers.backend import Backend, Layout
from dsjax.layers.moe import moe_specs
from dsjax.numerics.precision import Matrix, Operand, Precision, Weight, coded
from dsjax.numerics.scaled import Scaled
from dsjax.numerics.wire import WireFormat
from dsjax.ops import experts as op
from dsjax.ops.expert_mlp import ExpertMLP
from dsjax.parallel import expert, rules
from dsjax.parallel.exchange import MeshAxis
from dsjax.parallel.expert import ExchangeStage, Inner
from dsjax.parallel.mesh import AXES, DATA, EXPERT, EXPERTS, FSDP, NODE, sharding

Tree = Any


def on_mesh(backend: Backend, mesh: Mesh, layout: ParallelConfig, model: ModelConfig) -> Backend:
    """The backend with everything that varies with a mesh replaced."""
    dispatch = backend.dispatch
    if model.moe is not None:
        dispatch = functools.partial(_dispatch, mesh=mesh, layout=layout, model=model)
    moves = Layout(
        constrain=functools.partial(_constrain, mesh=mesh),
        gather=functools.partial(_gathered, mesh=mesh),
        gather_params=functools.partial(_gather_params, mesh=mesh),
        reduce_scatter_grads=functools.partial(_reduce_scatter_grads, mesh=mesh,
                                               use_zero=layout.use_zero),
        own_rows=functools.partial(own_rows, mesh=mesh),
        map_rows=functools.partial(_map_rows, mesh=mesh),
        psum_rows=functools.partial(_psum_rows, mesh=mesh),
    )
    return dataclasses.replace(backend, dispatch=dispatch, layout=moves)


@functools.cache
def own_rows(precision: Precision, mesh: Mesh) -> Precision:
    """A kernel's products over a mesh: each device's of its own rows, weights' gradients added up.

    Rows of which a tile lies on two devices are left to the reference. Products that XLA cuts
    itself stay as they are.
    """
    reference = precision.reference
    if reference is None:
        return precision
    tile = math.prod(mesh.shape[axis] for axis in AXES) * precision.row_tile

    def is_cut(rows: Operand) -> bool:
        return jax.tree.leaves(rows)[0].shape[0] % tile == 0

    def fprop(x: Operand, w: Operand) -> Array:
        if not is_cut(x):
            return reference.fprop(x, w)
        return _map_rows(lambda w, x: precision.fprop(x, w), w, x, mesh=mesh)

    def dgrad(dy: Operand, w: Operand) -> Array:
        if not is_cut(dy):
            return reference.dgrad(dy, w)
        return _map_rows(lambda w, dy: precision.dgrad(dy, w), w, dy, mesh=mesh)

    def wgrad(x: Operand, dy: Operand) -> Array:
        if not is_cut(x):
            return reference.wgrad(x, dy)
        return _psum_rows(lambda _, x, dy: precision.wgrad(x, dy), jnp.zeros(()), x, dy, mesh=mesh)

    return dataclasses.replace(precision, fprop=fprop, dgrad=dgrad, wgrad=wgrad, reference=None)


def _constrain(x: Array, axes: tuple[str | None, ...], mesh: Mesh) -> Array:
    """Put an activation where its logical axes say."""
    return lax.with_sharding_constraint(
        x, sharding(mesh, *(rules.RULES[a] if a else None for a in axes)))


def _psum_rows(f: Callable[..., Tree], whole: Array, *rows: Tree, mesh: Mesh) -> Tree:
    """Sum over each device's own rows, then over devices.

    Left to the compiler, a gradient that a loop adds up over chunks of rows is summed over devices
    in every trip: of V3's head 119 GB instead of 4.
    """
    def here(whole: Array, *rows: Tree) -> Tree:
        sums = f(lax.pcast(whole, AXES, to="varying"), *rows)
        return jax.tree.map(lambda a: lax.psum(a, AXES), sums)

    return jax.shard_map(
        here, mesh=mesh, in_specs=(PartitionSpec(), *(PartitionSpec(AXES) for _ in rows)),
        out_specs=PartitionSpec(), check_vma=True)(whole, *rows)


def _map_rows(f: Callable[..., Tree], whole: Tree, *rows: Tree, mesh: Mesh) -> Tree:
    """Each device's own rows.

    Left to the compiler, a router's top-K is not cut by rows: its results are gathered from all
    devices in every layer.
    """
    def here(whole: Tree, *rows: Tree) -> Tree:
        varying = jax.tree.map(lambda a: lax.pcast(a, AXES, to="varying"), whole)
        return f(varying, *rows)

    return jax.shard_map(
        here, mesh=mesh, in_specs=(PartitionSpec(), *(PartitionSpec(AXES) for _ in rows)),
        out_specs=PartitionSpec(AXES), check_vma=True)(whole, *rows)


def _gathered(w: Tree, mesh: Mesh) -> Tree:
    """A layer's weight, whole on every device; its gradient may stay in parts."""
    return jax.tree.map(lambda a: _whole(a, mesh), w) if mesh.shape[FSDP] > 1 else w


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _whole(a: Array, mesh: Mesh) -> Array:
    return lax.with_sharding_constraint(a, sharding(mesh))


_whole.defvjp(lambda a, mesh: (_whole(a, mesh), None), lambda mesh, _, d: (d,))


def _gather_params(tree: Tree, specs: Tree, mesh: Mesh) -> Tree:
    """Bring parameters, or their quantized form, to where a step uses them."""

    def one(spec: params.Spec, part: Tree) -> Tree:
        if isinstance(part, Array) and part.shape == spec.shape:
            return lax.with_sharding_constraint(part, rules.used_shardings(spec, mesh))
        return jax.tree.map(
            lambda a: lax.with_sharding_constraint(
                a, rules.quantized_sharding(spec, a, mesh)), part)

    return jax.tree.map(one, specs, tree, is_leaf=params.is_spec)


def _reduce_scatter_grads(tree: Tree, specs: Tree, mesh: Mesh, use_zero: bool) -> Tree:
    """Bring gradients to where masters rest: summed, each device keeping its part."""
    where = rules.stored_shardings(specs, mesh, use_zero=use_zero)
    return jax.tree.map(lax.with_sharding_constraint, tree, where)


def rows_of_a_part(tokens: int, choices: float, devices: int, capacity_factor: float) -> int:
    """C: rows a pair of devices has room for, a little over what balanced routing sends.

    Of `tokens` with `choices` random choices each, a device gets 1 - (1 - 1/P)^choices.
    """
    balanced = tokens * (1 - (1 - 1 / devices) ** choices)
    return max(1, min(tokens, math.ceil(balanced * capacity_factor)))


def exchange_stages(tokens: int, inner: Inner, layout: ParallelConfig, moe: MoEConfig,
                    wire: WireFormat) -> ExchangeStage:
    """The exchange of a layer for `tokens` tokens a device: across nodes, then within one."""
    nodes, devices = layout.expert_nodes, layout.expert // layout.expert_nodes
    is_ragged = layout.exchange == "ragged"
    visited = nodes * (1 - (1 - 1 / nodes) ** moe.experts_per_token)
    visited = min(visited, moe.groups_per_token if moe.groups % nodes == 0 else visited)
    arriving = tokens
    if nodes > 1:
        arriving = nodes * rows_of_a_part(tokens, visited, nodes, layout.capacity_factor)
    within = ExchangeStage(
        MeshAxis(EXPERT, AXES, is_ragged), devices, moe.experts // nodes,
        rows_of_a_part(arriving, moe.experts_per_token / visited, devices, layout.capacity_factor),
        wire, inner)
    if nodes == 1:
        return within
    across = MeshAxis(NODE, AXES, is_ragged)
    return ExchangeStage(across, nodes, moe.experts, arriving // nodes, wire, within)


def _experts(x: Array, experts: Array, weights: Array, masters: Tree, quantized: Tree, *,
             mlp: ExpertMLP, assignments: int) -> tuple[Array, Array]:
    """The experts of this device on the rows that arrived."""
    pair = [together(m, q) for m, q in zip(masters, quantized, strict=True)]
    here = min(assignments, experts.size)
    y = op.experts_batched(x, experts, weights, *pair, mlp=mlp, assignments=here)
    return y, jnp.zeros(())


def _dispatch(x: Array, experts: Array, weights: Array, w_gate_up: Matrix, w_down: Matrix,
              mlp: ExpertMLP, *, mesh: Mesh, layout: ParallelConfig,
              model: ModelConfig) -> tuple[Array, Array]:
    """As `Dispatch`, over the mesh. x [T, D], experts and weights [T, K] of all devices."""
    masters, quantized = zip(*(apart(w, mlp.precision) for w in (w_gate_up, w_down)), strict=True)
    moe = model.moe
    assert moe is not None, "only a mixture dispatches"
    specs = moe_specs(model.d_model, moe).experts
    used = tuple(rules.used_layer(s) for s in (specs.w_gate_up, specs.w_down))
    tokens = x.shape[0] // layout.row_devices
    work = functools.partial(_experts, mlp=mlp, assignments=tokens * experts.shape[1])
    stage = exchange_stages(tokens, work, layout, moe, mlp.precision.wire)

    def here(x: Array, experts: Array, weights: Array, masters: Tree, quantized: Tree):
        whole = tuple(_join(m, s) for m, s in zip(masters, used, strict=True))
        varying = jax.tree.map(lambda a: lax.pcast(a, (DATA, FSDP), to="varying"), quantized)
        return expert.routed(stage, x, experts, weights, whole, varying)

    rows = PartitionSpec(AXES)
    return jax.shard_map(
        here, mesh=mesh, in_specs=(rows, rows, rows, used, PartitionSpec(EXPERTS)),
        out_specs=(rows, PartitionSpec()), check_vma=True,
    )(x, experts, weights, masters, quantized)


def dispatch_here(x: Array, experts: Array, weights: Array, w_gate_up: Matrix, w_down: Matrix,
                  mlp: ExpertMLP, *, layout: ParallelConfig,
                  moe: MoEConfig) -> tuple[Array, Array]:
    """As `Dispatch`, for the tokens of one device, inside a shard_map manual over the mesh."""
    masters, quantized = zip(*(apart(w, mlp.precision) for w in (w_gate_up, w_down)), strict=True)
    work = functools.partial(_experts, mlp=mlp, assignments=experts.size)
    stage = exchange_stages(x.shape[0], work, layout, moe, mlp.precision.wire)
    return expert.routed(stage, x, experts, weights, masters, quantized)


def apart(w: Matrix, precision: Precision) -> tuple[Array | None, Any]:
    """Split a weight: the master with the gradient, and beside it the quantized operand if any.

    A Scaled has no gradient. Its operand is made here, where all its tiles are whole, and goes
    with its codes.
    """
    master, quantized = (w.master, w.quantized) if isinstance(w, Weight) else (w, None)
    if not isinstance(master, Scaled):
        return master, quantized
    master = coded(master)
    return None, Weight(master, precision.from_codes(master) if quantized is None else quantized)


def together(master: Array | None, quantized: Any) -> Matrix:
    """Rejoin what `apart` cut, for the experts' products."""
    if master is None:
        return quantized
    return master if quantized is None else Weight(master, quantized)


def _join(w: Array | None, used: PartitionSpec) -> Array | None:
    """Gather a master's parts over fsdp; its gradient is summed into them, and over data."""
    if w is None:
        return None
    dim = list(used).index(FSDP)
    return lax.pcast(lax.all_gather(w, FSDP, axis=dim, tiled=True), (DATA,), to="varying")


def describe(tokens: int, layout: ParallelConfig, d_model: int, moe: MoEConfig, wire: WireFormat,
             itemsize: int) -> str:
    """The bound on what a device receives at once, in a sentence for the header of a run."""
    stage: Any = exchange_stages(tokens, _nothing, layout, moe, wire)
    parts = []
    while isinstance(stage, ExchangeStage):
        rows = stage.devices * stage.rows
        size = rows * wire.out.row_bytes(d_model, itemsize) / 2**20
        parts.append(f"{rows} rows ({size:.1f} MiB) received over {stage.axis.name}")
        stage = stage.inner
    kind = "ragged (padded on a CPU)" if layout.exchange == "ragged" else "padded"
    return (f"{kind}, tokens as {wire.out.name}, sums as {wire.back.name}; at most "
            f"{' and '.join(parts)} a round, more rounds for what exceeds it")


def _nothing(x: Array, experts: Array, weights: Array, masters: Tree,
             quantized: Tree) -> tuple[Array, Array]:
    """Work that is only described."""
    return x, jnp.zeros(())
