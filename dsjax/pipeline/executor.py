"""Run a pipeline schedule: one manual shard_map over the mesh, one scan over the table's ticks.

In every tick each rank does what its instructions say, a switch over the kinds of cell that the
table has; then neighbors exchange what they made. Forward, input gradient and weight gradient are
the three parts of one layer (split_vjp.py), looped over the layers of a stage.

A collective may not stand in a branch that ranks choose differently, so the values of a tick are
sent after its switch, with nothing left to hide behind. `is_unrolled` takes ticks in which all
ranks have a pair (the steady state: for M much larger than P, most of DualPipe's) out of the switch
and writes them out whole. The forward's output then travels behind the backward's last products,
the gradient behind those of W.

Embedding and head are on every rank, one copy each: the same program runs everywhere. Stage 0 reads
the embedding; final norm, head, losses and MTP modules run, forward and backward together, in the
B of the last stage, whose weight gradients are not postponed. In DualPipe both ends meet on the
first and the last rank, which use the same arrays for both.

Each device holds its own rows, cut over every axis but `pipe`; parameters are made to vary over all
axes before anything is differentiated, and their gradients are summed once, after the scan.

Axes: P ranks, M microbatches, B rows, T time, D model.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array, lax
from jax.sharding import Mesh, PartitionSpec

from dsjax import params
from dsjax.config.model import ModelConfig, Stack
from dsjax.layers.backend import Backend
from dsjax.model import loss as losses
from dsjax.model import transformer
from dsjax.model.loss import Batch, LossParts, Objective
from dsjax.model.transformer import TransformerParams
from dsjax.numerics import precision
from dsjax.ops.norm import rms_norm
from dsjax.parallel import rules
from dsjax.parallel.mesh import AXES, PIPE
from dsjax.params import Tree
from dsjax.pipeline import buffers, stage_work, ticks
from dsjax.pipeline.instructions import Instructions, Program
from dsjax.pipeline.schedules.table import Kind, Work
from dsjax.pipeline.stage_work import EVERYWHERE, Side, StageLayout, varying
from dsjax.pipeline.transfer import receive, send


@dataclasses.dataclass(frozen=True)
class Pipeline:
    """A program on a mesh with a `pipe` axis, for one model; `backend` works inside a shard_map."""

    program: Program
    mesh: Mesh
    model: ModelConfig
    backend: Backend
    is_unrolled: bool = False
    """Write paired ticks out, for machines that compute while they communicate."""


@struct.dataclass
class Outcome:
    """Result of a step's pipeline: gradients in float32, the loss and its summed parts."""

    grads: TransformerParams
    total: Array
    parts: LossParts
    executed: Array  # [P, branches] ticks in which a rank ran each branch


@struct.dataclass
class _Inputs:
    """Everything a rank is given, or where each array of it lies."""

    layers: dict[str, Tree]  # by stack, [P, chunks * N, ...]
    quantized: dict[str, Tree]  # their low-precision form, or None
    ends: Tree  # embedding, final norm, head, MTP modules
    quantized_ends: Tree
    counts: Any  # by stack, [P, chunks] layers of each chunk
    mixture: Any  # by stack with experts, [P, chunks * N] number among the mixture layers
    instructions: Any  # [P, ticks]
    batch: Any  # [M, B, T+1]
    objective: Any


def run(pipe: Pipeline, p: TransformerParams, quantized: Tree, batch: Batch,
        objective: Objective) -> Outcome:
    """Gradients of a whole batch's loss. batch: leaves [M, B, T+1], B the rows of all devices.

    `quantized` is p's low-precision form (`precision.quantize_weights`) or None.
    """
    layouts = stage_work.layouts(pipe.model, pipe.program)
    inputs = _Inputs(
        layers={name: stage_work.to_stages(p.stacks[name], one) for name, one in layouts.items()},
        quantized=dict.fromkeys(layouts), ends=dataclasses.replace(p, stacks={}),
        quantized_ends=None,
        counts={name: jnp.asarray(layout.count) for name, layout in layouts.items()},
        mixture=stage_work.mixture_layers(pipe.model, layouts),
        instructions=jax.tree.map(jnp.asarray, pipe.program.instructions),
        batch=batch, objective=objective)
    if quantized is not None:
        inputs = dataclasses.replace(
            inputs, quantized={name: stage_work.to_stages(quantized.stacks[name], one)
                       for name, one in layouts.items()},
            quantized_ends=dataclasses.replace(quantized, stacks={}))
    where = _where(pipe, inputs)
    whole, by_rank = PartitionSpec(), PartitionSpec(PIPE)
    d_layers, d_ends, total, parts, loads, executed = jax.shard_map(
        functools.partial(_on_rank, pipe, layouts, where), mesh=pipe.mesh, in_specs=(where,),
        out_specs=(where.layers, where.ends, whole, whole, by_rank, by_rank), check_vma=True,
    )(inputs)
    stacks = {name: stage_work.from_stages(d_layers[name], one) for name, one in layouts.items()}
    each = [stage_work.from_stages(loads[name], layouts[name]) for name in loads]
    each += [parts.loads] if parts.loads.size else []
    if each:
        parts = dataclasses.replace(parts, loads=jnp.concatenate(each))
    return Outcome(dataclasses.replace(d_ends, stacks=stacks), total, parts, executed)


def _where(pipe: Pipeline, inputs: _Inputs) -> _Inputs:
    """Mesh axes of every input."""
    specs = transformer.specs(pipe.model)
    ends = dataclasses.replace(specs, stacks={})
    whole, by_rank = PartitionSpec(), PartitionSpec(PIPE)
    quantized_ends, quantized = None, dict.fromkeys(inputs.layers)
    if inputs.quantized_ends is not None:
        quantized_ends = stage_work.quantized_specs(ends, inputs.quantized_ends, is_layer=False)
        quantized = {
            name: stage_work.quantized_specs(specs.stacks[name], tree, is_layer=True)
            for name, tree in inputs.quantized.items()}
    return _Inputs(
        layers={name: params.map_specs(stage_work.layer_partition, stack)
                for name, stack in specs.stacks.items()},
        quantized=quantized, ends=params.map_specs(rules.used, ends),
        quantized_ends=quantized_ends, counts=by_rank, mixture=by_rank, instructions=by_rank,
        batch=PartitionSpec(None, AXES), objective=whole)


def _on_rank(pipe: Pipeline, layouts: dict[str, StageLayout], where: _Inputs,
             inputs: _Inputs) -> tuple:
    """The whole step on one device, and the sums over devices at its end."""
    by_rank = {name: getattr(inputs, name) for name in
               ("layers", "quantized", "counts", "mixture", "instructions")}
    inputs = varying(dataclasses.replace(inputs, **jax.tree.map(lambda a: a[0], by_rank)))
    _, rows, length = inputs.batch.tokens.shape
    x = varying(jnp.zeros((rows, length - 1, pipe.model.d_model), pipe.backend.dtype))
    groups = tuple(_group(pipe, stack, layouts[stack.name], inputs, x)
                   for stack in pipe.model.stacks)
    rank = buffers.Rank(pipe.program, groups, inputs.ends, _tail(pipe, inputs), inputs.batch,
                        pipe.backend, pipe.is_unrolled)
    state = varying(buffers.start(rank, x, pipe.model.moe.experts if pipe.model.moe else 0))
    is_steady = jnp.asarray(pipe.program.steady_state & pipe.is_unrolled)
    state, _ = lax.scan(_tick(rank), state, (inputs.instructions, is_steady))
    return _reduced(state, where)


def _group(pipe: Pipeline, stack: Stack, layout: StageLayout, inputs: _Inputs,
           x: Array) -> buffers.Group:
    """The layers of a stack on this rank, their gradient cut in three."""
    layers, quantized = inputs.layers[stack.name], inputs.quantized[stack.name]
    layer = stage_work.layer(pipe.model, stack.is_moe, inputs.objective.balance, pipe.backend)
    rows = inputs.objective.totals.rows
    first, first_quantized, part = buffers.at((layers, quantized, inputs.batch), 0)
    routes = part.routes[:, 0, :-1] if stack.is_moe and part.routes is not None else None
    side = Side(part.segments[:, :-1], rows, first_quantized, routes)
    return buffers.Group(stack, layout, layers, quantized, inputs.counts[stack.name], rows,
                         inputs.mixture.get(stack.name), buffers.split_layer(layer, first, side, x))


def _tick(rank: buffers.Rank) -> Callable:
    """One tick: what the instructions say, and the exchange."""
    program = rank.program
    branches = [_counted(ticks.branch(rank, kinds), i) for i, kinds in enumerate(program.branches)]

    def chosen(state: buffers.State, now: Instructions) -> buffers.State:
        if len(branches) == 1:
            y, dx, state = branches[0](state, now)
        else:
            y, dx, state = lax.switch(now.branch, branches, state, now)
        return receive(rank, state, now, send(rank, y, "y"), send(rank, dx, "dx"))

    def paired(state: buffers.State, now: Instructions) -> buffers.State:
        work = ticks.branch(rank, program.branches[program.pair], sends=True)
        y, dx, state = _counted(work, program.pair)(state, now)
        return receive(rank, state, now, y, dx)

    def tick(state: buffers.State, step: Any) -> tuple[buffers.State, None]:
        now, is_steady = step
        if rank.is_unrolled and program.steady_state.any():
            return lax.cond(is_steady, paired, chosen, state, now), None
        return chosen(state, now), None

    return tick


def _counted(work: Callable, index: int) -> Callable:
    """Work that also counts how often it ran."""

    def run(state: buffers.State, now: Instructions) -> tuple[Any, Any, buffers.State]:
        y, dx, state = work(state, now)
        y, dx, state = varying((y, dx, state))
        return y, dx, dataclasses.replace(state, executed=state.executed.at[index].add(1))

    return run


def _tail(pipe: Pipeline, inputs: _Inputs) -> Callable:
    """Norm, head and losses with their gradient: ends, x [B, T, D], batch -> loss, parts, d's."""
    specs = dataclasses.replace(transformer.specs(pipe.model), stacks={})
    quantized = inputs.quantized_ends

    def loss(ends: TransformerParams, x: Array, part: Batch) -> tuple[Array, LossParts]:
        tree = ends if quantized is None else precision.attach(ends, quantized, specs)
        x = rms_norm(x, tree.norm, pipe.model.norm_eps)
        return losses.after_layers(tree, x, None, part, inputs.objective, pipe.model, pipe.backend)

    return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)


def _reduced(state: buffers.State, where: _Inputs) -> tuple:
    """Sum over devices what is not cut over them."""

    def one(a: Array, spec: PartitionSpec) -> Array:
        cut = {axis for entry in spec for axis in rules.mesh_axes(entry)}
        return lax.psum(a, tuple(axis for axis in EVERYWHERE if axis not in cut))

    grads = jax.tree.map(lambda a: a[None], state.grads)
    rounds = state.rounds + state.parts.extra_rounds  # the same number on a rank's devices
    rounds = lax.psum(lax.pmax(rounds, AXES), PIPE)
    parts = lax.psum(state.parts, EVERYWHERE)
    return (
        jax.tree.map(one, grads, where.layers),
        jax.tree.map(one, state.d_ends, where.ends),
        lax.psum(state.total, EVERYWHERE),
        dataclasses.replace(parts, extra_rounds=rounds),
        jax.tree.map(lambda a: lax.psum(a, AXES)[None], state.loads),
        lax.pmax(state.executed, AXES)[None],
    )


def executed_work(program: Program, executed: Any) -> tuple[Work, ...]:
    """Translate counts of branches into what each rank ran, as `count_work` says it of a table."""
    found = []
    for row in executed:
        tally = dict.fromkeys(Kind, 0)
        paired = idle = 0
        for kinds, times in zip(program.branches, map(int, row), strict=True):
            if Kind.FORWARD in kinds and Kind.BACKWARD in kinds:
                paired += times
                continue
            idle += times * (not kinds)
            for kind in kinds:
                tally[kind] += times
        found.append(Work(tally[Kind.FORWARD], tally[Kind.INPUT], tally[Kind.WEIGHT],
                          tally[Kind.BACKWARD], paired, idle))
    return tuple(found)
