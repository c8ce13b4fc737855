"""The whole step of a run, compiled for a machine that is not here: the step that `train` runs.

State and batch are shapes with shardings on the machine's devices, born where they would rest;
nothing is allocated. What comes out was compiled and has not run.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from dsjax.config.run import RunConfig
from dsjax.errors import UserError
from dsjax.model import transformer
from dsjax.model.loss import from_rows
from dsjax.ops.token_loss import TokenLoss, cross_entropy
from dsjax.parallel import mesh as meshes
from dsjax.plan import ahead, memory, target
from dsjax.plan.ahead import Compiled, Refused
from dsjax.plan.memory import Memory
from dsjax.plan.target import Target
from dsjax.runtime import backend as backends
from dsjax.train import sharding


@dataclass(frozen=True)
class Plan:
    """Needs of a run's step on a machine."""

    run: RunConfig
    target: Target
    result: Compiled | Refused
    memory: Memory
    advice: str


@dataclass(frozen=True)
class Foreign:
    """A loss of another kind than pre-training's, and what its rows have besides."""

    token_loss: TokenLoss = cross_entropy
    extra: tuple[str, ...] = ()
    """Names of float32 arrays [B, T + 1]."""
    has_routes: bool = False


def plan(run: RunConfig, machine: Target, foreign: Foreign = Foreign()) -> Plan:
    """Compile a run's step for a machine, and split what it needs by kind."""
    mesh = open_mesh(run, machine)
    backend = backends.for_run(run, mesh)
    state = sharding.abstract(run, mesh)
    where = meshes.sharding(mesh, meshes.AXES)
    shape = (run.train.batch_size, run.train.seq_len + 1)
    dtypes = {"tokens": jnp.int32, "segments": jnp.int32, "weights": jnp.float32}
    dtypes |= dict.fromkeys(foreign.extra, jnp.float32)
    rows = {name: jax.ShapeDtypeStruct(shape, dtype, sharding=where)
            for name, dtype in dtypes.items()}
    if foreign.has_routes and run.model.moe is not None:
        kinds = (shape[0], run.model.moe_layers, shape[1], run.model.moe.experts_per_token)
        rows["routes"] = jax.ShapeDtypeStruct(kinds, jnp.int32, sharding=where)
    batch = from_rows(rows)
    step = sharding.compile_step(run, backend, mesh, foreign.token_loss)
    result = ahead.compile_for(machine, step, state, batch)
    total, limit = machine_bytes(result, machine)
    found = memory.measure(
        total, limit, {"masters": state.params, "moments": (state.opt.mu, state.opt.nu)},
        (batch, state.step, state.skipped, state.skipped_in_row, state.opt.count),
        transformer.specs(run.model), mesh, backend.precision)
    return Plan(run, machine, result, found, memory.advice(found, run, sharding.check))


def open_mesh(run: RunConfig, machine: Target) -> jax.sharding.Mesh:
    """The mesh of a run's layout on all devices of a machine, refused where they do not match."""
    if run.parallel.devices != machine.devices:
        raise UserError(
            f"{machine.name} has {machine.devices} devices and the layout {run.parallel} uses "
            f"{run.parallel.devices}; choose --parallel sizes whose product is {machine.devices}"
        )
    sharding.check(run)
    return meshes.make_mesh(run.parallel, target.devices(machine))


def machine_bytes(result: Compiled | Refused, machine: Target) -> tuple[int, int]:
    """Bytes that a step needs of a device and that it has, by the compiler where it refused."""
    if isinstance(result, Refused):
        return result.needed, min(result.limit, machine.chip.memory)
    return result.total, machine.chip.memory
