"""A run over devices: its mesh, where its state rests, its share of a batch, its compiled step.

A layout of one device needs no mesh: `mesh` is None and everything is as JAX places it. Otherwise
the state is born where it rests, by the rules of `parallel.rules`; a step takes and gives it there.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding

from dsjax import params
from dsjax.config.run import RunConfig
from dsjax.errors import UserError
from dsjax.evaluate import heldout
from dsjax.evaluate.heldout import HeldoutStep, HeldoutSums
from dsjax.layers.backend import Backend
from dsjax.layers.remat import keep_all
from dsjax.model import tuned
from dsjax.model.loss import Batch, from_rows
from dsjax.model.transformer import TransformerParams
from dsjax.ops.token_loss import TokenLoss, cross_entropy
from dsjax.parallel import mesh as meshes
from dsjax.parallel import mesh_backend, rules
from dsjax.params import Tree
from dsjax.runtime import compiler
from dsjax.train import pipelined, state, step
from dsjax.train.state import TrainState
from dsjax.train.step import Gradients, TrainStep
from dsjax.train.tuning import partial

Made = TypeVar("Made")


def open_mesh(run: RunConfig) -> Mesh | None:
    """The mesh of a run's layout, refused where the run does not divide over it."""
    check(run)
    if run.parallel.devices == 1 and jax.process_count() == 1:
        return None
    return meshes.make_mesh(run.parallel)


def check(run: RunConfig) -> None:
    """Refuse a run that does not divide over its layout, or parts of which could never learn."""
    _check_learning(run)
    rows = [run.train.batch_size]
    if run.train.batch_size_start is not None:
        rows += [run.train.batch_size_start, run.train.batch_size_multiple]
    meshes.check(run.parallel, run.model, rows, run.train.microbatches)
    if run.parallel.interleave:
        _check_halves(run, rows)
    if run.parallel.pipe > 1:
        pipelined.check(run)
    tuned.check(run)


def _check_learning(run: RunConfig) -> None:
    """Refuse modules without a target and losses without a gradient."""
    depth, length, moe = run.model.mtp_depth, run.train.seq_len, run.model.moe
    if depth >= length:
        raise UserError(
            f"MTP module {depth} predicts the token {depth + 1} ahead, and rows of {length} tokens "
            f"hold none: it would never learn; use --train.seq-len {depth + 1} or more, or "
            f"--model.mtp-depth {length - 1} or less"
        )
    if run.loss.device_balance and moe is not None and moe.groups == 1:
        raise UserError(
            f"--loss.device-balance {run.loss.device_balance} balances groups of experts, and of "
            "one group it is a constant without a gradient; use --model.moe.groups 2 or more, or "
            "--loss.device-balance 0"
        )


def _check_halves(run: RunConfig, rows: list[int]) -> None:
    """Refuse to interleave what has no two equal halves."""
    share = run.parallel.row_devices * run.train.microbatches
    for batch in rows:
        if batch // share % 2:
            raise UserError(
                f"--parallel.interleave cuts the rows of a device in two, and of {batch} rows in "
                f"{run.train.microbatches} microbatches over {run.parallel.row_devices} devices "
                f"each has {batch // share}; use a batch that is a multiple of {2 * share} rows"
            )
    if run.model.moe is not None and run.model.moe.capacity_factor is not None:
        raise UserError(
            "a capacity is of the whole batch's tokens, so its halves cannot go apart; use "
            "--model.moe.capacity-factor None or leave --parallel.interleave out"
        )


def describe(run: RunConfig, backend: Backend, mesh: Mesh | None) -> dict[str, str]:
    """Describe a run's layout for its header."""
    count = jax.device_count()
    if mesh is None:
        return {"layout": f"one device of {count}"} if count > 1 else {}
    said = {"layout": f"{run.parallel}: {run.parallel.devices} of {count} devices"
            + (", ZeRO-1" if run.parallel.use_zero else "")}
    if asked := compiler.here():
        said["compiler"] = ", ".join(f"{name}={value}" for name, value in asked.items())
    if run.parallel.pipe > 1:
        said["pipeline"] = pipelined.describe(run)
    if run.model.moe is not None and run.parallel.expert > 1:
        said["exchange"] = mesh_backend.describe(
            tokens_of_a_device(run), run.parallel, run.model.d_model, run.model.moe,
            backend.precision.wire, backend.dtype.itemsize)
        if run.parallel.interleave:
            said["interleaved"] = ("two halves of each device's rows, attention of one while "
                                   "tokens of the other travel")
    return said


def tokens_of_a_device(run: RunConfig) -> int:
    """Tokens of a device that an exchange begins with, of a whole batch's microbatch."""
    parts = run.parallel.row_devices * run.train.microbatches * (1 + run.parallel.interleave)
    return run.train.batch_size * run.train.seq_len // parts


def first_alone(work: Callable[[], Made]) -> Made:
    """Do in the first process, then in all others, what finds its own results there again."""
    made = work() if jax.process_index() == 0 else None
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("first_alone")
    return work() if made is None else made


def state_shardings(run: RunConfig, mesh: Mesh) -> TrainState:
    """Return the shardings of a run's state: masters and moments by the rules, counts whole."""
    specs = tuned.specs(run)
    by_name = dict(params.paths(
        rules.stored_shardings(specs, mesh, use_zero=run.parallel.use_zero)))
    whole = meshes.sharding(mesh)

    def one(path: Any, leaf: Any) -> NamedSharding:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        for owner in ("params.", "opt.mu.", "opt.nu."):
            if name.startswith(owner):
                return by_name[name.removeprefix(owner)]
        return whole

    return jax.tree_util.tree_map_with_path(one, state.abstract(run))


def abstract(run: RunConfig, mesh: Mesh | None) -> TrainState:
    """Shapes, dtypes and, on a mesh, places of a run's state."""
    shapes = state.abstract(run)
    if mesh is None:
        return shapes
    return jax.tree.map(
        lambda s, where: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=where),
        shapes, state_shardings(run, mesh))


def init(run: RunConfig, mesh: Mesh | None) -> TrainState:
    """Draw the start of a run, each leaf where it rests: the same numbers on every layout."""
    where = None if mesh is None else state_shardings(run, mesh)
    return jax.jit(lambda key: state.init(run, key), out_shardings=where)(params.key_of(run.seed))


def begin(run: RunConfig, start: Tree, mesh: Mesh | None) -> TrainState:
    """Return the state of a run from float32 parameters, which lie where the run keeps them."""
    where = None if mesh is None else state_shardings(run, mesh)
    return jax.jit(lambda p: state.begin(run, p), out_shardings=where, donate_argnums=0)(start)


def put_rows(rows: Mapping[str, np.ndarray], mesh: Mesh | None) -> Batch:
    """This process's rows of a step as the whole step's batch, cut over all devices.

    The ranks of a pipeline read the same rows. Where they may lie in several processes, each of
    which draws its own rows, rows are cut over ranks as well, and gathered in the step.
    """
    if mesh is None:
        return from_rows(dict(rows))
    where = meshes.sharding(mesh, meshes.AXES if jax.process_count() == 1 else mesh.axis_names)
    return from_rows(
        {name: jax.make_array_from_process_local_data(where, a) for name, a in rows.items()})


def compile_step(run: RunConfig, backend: Backend, mesh: Mesh | None,
                 token_loss: TokenLoss = cross_entropy,
                 frozen: TransformerParams | None = None) -> TrainStep:
    """The jitted step of a run, compiled with the options of its platform; the state is donated.

    frozen: the weights that rest, where only a part learns.
    """
    where = None
    if mesh is not None:
        where = (state_shardings(run, mesh), meshes.sharding(mesh))
    compiled = functools.partial(jax.jit, donate_argnums=0, out_shardings=where,
                                 compiler_options=compiler.here() or None)
    if frozen is not None:
        made = partial.make_step(run, backend, token_loss)
        return partial.BesideFrozen(compiled(made), frozen)
    differentiate: Gradients = step.gradients
    if mesh is not None and run.parallel.pipe > 1:
        differentiate = pipelined.make_gradients(run, backend, mesh)
    return compiled(step.make_train_step(run, backend, token_loss, differentiate))


def compile_heldout(run: RunConfig, backend: Backend, mesh: Mesh | None) -> HeldoutStep:
    """The jitted held-out step of a run, for parameters as they rest, or `Frozen.given` them."""
    forward = dataclasses.replace(backend, remat=keep_all, unroll=1)
    take = heldout.make_heldout_step(run.model, forward)

    def heldout_step(p: Any, batch: Batch) -> HeldoutSums:
        return take(partial.used(run, backend, p), batch)

    where = None if mesh is None else meshes.sharding(mesh)
    return jax.jit(heldout_step, out_shardings=where)
