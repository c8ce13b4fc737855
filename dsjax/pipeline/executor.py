"""Run a pipeline schedule: one manual shard_map over the mesh, one scan over the table's slots.

In every slot each rank does what its instructions say (program.py), then neighbors exchange what
they made. Forward, input gradient and weight gradient are the three parts of one layer (split.py),
looped over the layers of a stage. Two forms of a slot:

    branched  a switch over the kinds of cell that the table has. No rank computes what its cell
              does not hold, and an overlapped F&BW is one branch, in which the compiler may hide
              the exchanges of each half behind the other.
    masked    every rank computes one F, one B and one W in every slot and drops what it was not
              asked for. All is in the open for the compiler, and idle slots cost as much as others.

A collective may not stand in a branch that ranks choose differently, so what a slot made is sent
after its switch, with nothing left to hide behind. `is_open` takes slots in which all ranks have a
pair (for M much larger than P, most of DualPipe's) out of the switch and writes them out whole: the
forward's output then travels behind the backward's last products, the gradient behind those of W.

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
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array, lax
from jax.sharding import Mesh, PartitionSpec

from dsjax import params
from dsjax.config.model import ModelConfig
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
from dsjax.pipeline.instructions import Program
from dsjax.pipeline.schedules.table import Kind, Work
from dsjax.pipeline.stage_work import EVERYWHERE, Room, varying
from dsjax.pipeline.transfer import arrive, travel


@dataclasses.dataclass(frozen=True)
class Pipeline:
    """A program on a mesh with a `pipe` axis, for one model; `backend` works inside a shard_map."""

    program: Program
    mesh: Mesh
    model: ModelConfig
    backend: Backend
    is_open: bool = False
    """Whether paired slots are laid open, for machines that compute while they communicate."""


@struct.dataclass
class Outcome:
    """What a step's pipeline made: gradients in float32, the loss and its summed parts."""

    grads: TransformerParams
    total: Array
    parts: LossParts
    executed: Array  # [P, branches] slots in which a rank ran each branch


def run(pipe: Pipeline, p: TransformerParams, held: Tree, batch: Batch,
        objective: Objective) -> Outcome:
    """Gradients of a whole batch's loss. batch: leaves [M, B, T+1], B the rows of all devices.

    `held` is p's low-precision form (`quantize_weights`) or None.
    """
    specs = transformer.specs(pipe.model)
    found = stage_work.rooms(pipe.model, pipe.program)
    layers = {name: stage_work.to_stages(p.stacks[name], room) for name, room in found.items()}
    where = {name: params.map_specs(stage_work.layer_partition, specs.stacks[name])
             for name in found}
    ends = dataclasses.replace(p, stacks={})
    ends_specs = dataclasses.replace(specs, stacks={})
    ends_where = params.map_specs(rules.used, ends_specs)
    held_layers = dict.fromkeys(found)
    held_where: dict[str, Any] = dict(held_layers)
    held_ends = held_ends_where = None
    if held is not None:
        for name, room in found.items():
            held_layers[name] = stage_work.to_stages(held.stacks[name], room)
            held_where[name] = stage_work.held_specs(specs.stacks[name], held.stacks[name],
                                                     is_layer=True)
        held_ends = dataclasses.replace(held, stacks={})
        held_ends_where = stage_work.held_specs(ends_specs, held_ends, is_layer=False)
    whole, by_rank = PartitionSpec(), PartitionSpec(PIPE)
    counts = {name: jnp.asarray(room.count) for name, room in found.items()}
    instructions = jax.tree.map(jnp.asarray, pipe.program.instructions)
    out = jax.shard_map(
        lambda *args: _on_rank(pipe, found, (where, ends_where), *args),
        mesh=pipe.mesh,
        in_specs=(where, held_where, ends_where, held_ends_where, by_rank, by_rank,
                  PartitionSpec(None, AXES), whole),
        out_specs=(where, ends_where, whole, whole, by_rank, by_rank),
        check_vma=True,
    )(layers, held_layers, ends, held_ends, counts, instructions, batch, objective)
    d_layers, d_ends, total, parts, loads, executed = out
    back = {name: stage_work.from_stages(d_layers[name], room) for name, room in found.items()}
    each = [stage_work.from_stages(loads[name], found[name]) for name in loads]
    each += [parts.loads] if parts.loads.size else []
    if each:
        parts = dataclasses.replace(parts, loads=jnp.concatenate(each))
    return Outcome(dataclasses.replace(d_ends, stacks=back), total, parts, executed)


def _on_rank(pipe: Pipeline, found: dict[str, Room], where: tuple, layers: dict, held: dict,
             ends: Tree, held_ends: Tree, counts: dict, instructions: Any, batch: Batch,
             objective: Objective) -> tuple:
    """The whole step on one device, and the sums over devices at its end."""
    layers, held, counts, instructions = jax.tree.map(
        lambda a: a[0], (layers, held, counts, instructions))
    given = (layers, held, ends, held_ends, counts, instructions, batch, objective)
    layers, held, ends, held_ends, counts, instructions, batch, objective = varying(given)
    _, rows, length = batch.tokens.shape
    x = varying(jnp.zeros((rows, length - 1, pipe.model.d_model), pipe.backend.dtype))
    groups = []
    for stack in pipe.model.stacks:
        name, room = stack.name, found[stack.name]
        layer = stage_work.layer(pipe.model, stack.is_moe, objective.balance, pipe.backend)
        groups.append(buffers.group(stack, room, layers[name], held[name], counts[name],
                                    objective.totals.rows, batch.segments[0, :, :-1], layer, x))
    tail = _tail(pipe, held_ends, objective)
    rank = buffers.Rank(pipe.program, tuple(groups), ends, tail, batch, pipe.backend, pipe.is_open)
    experts = pipe.model.moe.experts if pipe.model.moe else 0
    state = varying(buffers.start(rank, x, experts))
    steady = jnp.asarray(pipe.program.steady & pipe.is_open)
    state, _ = lax.scan(_slot(rank), state, (instructions, steady))
    return _reduced(state, where)


def _slot(rank: buffers.Rank) -> Callable:
    """One slot: what the instructions say, and the exchange."""
    program = rank.program
    branches = [_counted(ticks.branch(rank, kinds), i) for i, kinds in enumerate(program.branches)]

    def chosen(state: buffers.State, now: Any) -> buffers.State:
        if len(branches) == 1:
            y, dx, state = branches[0](state, now)
        else:
            y, dx, state = lax.switch(now.branch, branches, state, now)
        return arrive(rank, state, now, travel(rank, y, "y"), travel(rank, dx, "dx"))

    def paired(state: buffers.State, now: Any) -> buffers.State:
        work = ticks.branch(rank, program.branches[program.pair], sends=True)
        y, dx, state = _counted(work, program.pair)(state, now)
        return arrive(rank, state, now, y, dx)

    def slot(state: buffers.State, step: Any) -> tuple[buffers.State, None]:
        now, is_steady = step
        if rank.is_open and program.steady.any():
            return lax.cond(is_steady, paired, chosen, state, now), None
        return chosen(state, now), None

    return slot


def _counted(work: Callable, index: int) -> Callable:
    """Work that also counts how often it ran."""

    def run(state: buffers.State, now: Any) -> tuple[Any, Any, buffers.State]:
        y, dx, state = work(state, now)
        y, dx, state = varying((y, dx, state))
        return y, dx, dataclasses.replace(state, executed=state.executed.at[index].add(1))

    return run


def _tail(pipe: Pipeline, held: Tree, objective: Objective) -> Callable:
    """What follows the layers, with its gradient: ends, x [B, T, D], batch -> loss, parts, d's."""
    specs = dataclasses.replace(transformer.specs(pipe.model), stacks={})

    def loss(ends: TransformerParams, x: Array, part: Batch) -> tuple[Array, LossParts]:
        tree = ends if held is None else precision.attach(ends, held, specs)
        x = rms_norm(x, tree.norm, pipe.model.norm_eps)
        return losses.after_layers(tree, x, None, part, objective, pipe.model, pipe.backend)

    return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)


def _reduced(state: buffers.State, where: tuple) -> tuple:
    """Sum over devices what is not cut over them."""

    def one(a: Array, spec: PartitionSpec) -> Array:
        cut = {axis for entry in spec for axis in rules.mesh_axes(entry)}
        return lax.psum(a, tuple(axis for axis in EVERYWHERE if axis not in cut))

    def summed(tree: Tree, specs: Tree) -> Tree:
        return jax.tree.map(one, tree, specs)

    grads = jax.tree.map(lambda a: a[None], state.grads)
    rounds = state.rounds + state.parts.extra_rounds  # the same number on a rank's devices
    rounds = lax.psum(lax.pmax(rounds, AXES), PIPE)
    parts = lax.psum(state.parts, EVERYWHERE)
    return (
        summed(grads, where[0]),
        summed(state.d_ends, where[1]),
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
