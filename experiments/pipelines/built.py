"""One model under any schedule, as a compiled program: the `tiny` shape with eight mixture layers.

Eight layers lie evenly on 4 or 8 stages, so a buffer of activations holds two layers or one.

Axes: M microbatches, B rows, T time.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from configs import tiny
from dsjax.config.parallel import ParallelConfig
from dsjax.config.run import PrecisionConfig, RunConfig
from dsjax.layers.backend import single
from dsjax.layers.remat import policy
from dsjax.model import transformer
from dsjax.model.loss import Batch
from dsjax.parallel.mesh import AXES, PIPE, make_mesh
from dsjax.pipeline import executor
from dsjax.pipeline.executor import Pipeline
from dsjax.pipeline.instructions import Program, compile_table
from dsjax.pipeline.schedules.build import Lockstep
from dsjax.pipeline.schedules.table import Kind
from dsjax.train import step

LENGTH, ROWS = 128, 1


def run_of(microbatches: int, layers: int = 8, remat: str = "none") -> RunConfig:
    """The run that all schedules compute, in float32."""
    base = tiny.config()
    model = dataclasses.replace(base.model, layers=layers, dense_layers=0)
    train = dataclasses.replace(base.train, batch_size=ROWS * microbatches, seq_len=LENGTH,
                                microbatches=microbatches)
    return dataclasses.replace(base, model=model, train=train, precision=PrecisionConfig("fp32"),
                               machine=dataclasses.replace(base.machine, remat=remat))


@functools.cache
def inputs(run: RunConfig) -> tuple[Any, Batch]:
    """Parameters, and random tokens [B, T+1]."""
    rng = np.random.default_rng(0)
    shape = (run.train.batch_size, run.train.seq_len + 1)
    batch = Batch(jnp.asarray(rng.integers(0, run.model.vocab, shape), jnp.int32),
                  jnp.ones(shape, jnp.int32), jnp.ones(shape))
    return transformer.init(run.model, jax.random.key(0)), batch


def piped(run: RunConfig, program: Program) -> Any:
    """The compiled gradients of a step under a program, a function of parameters and batch."""
    ranks = program.schedule.ranks
    mesh = make_mesh(ParallelConfig(pipe=ranks)) if ranks > 1 else jax.make_mesh(
        (1,) * 5, (PIPE, *AXES), devices=jax.devices()[:1],
        axis_types=(jax.sharding.AxisType.Auto,) * 5)
    backend = dataclasses.replace(single(), remat=policy(run.machine.remat))
    pipe = Pipeline(program, mesh, run.model, backend)
    count = run.train.microbatches

    def take(p: Any, batch: Batch) -> executor.Outcome:
        cut = jax.tree.map(lambda a: a.reshape(count, -1, *a.shape[1:]), batch)
        return executor.run(pipe, p, None, cut, step.objective_of(run, batch, jnp.int32(0)))

    return jax.jit(take).lower(*inputs(run)).compile()


def plain(run: RunConfig) -> Any:
    """The compiled gradients of the same microbatches on one device without a pipeline."""
    def take(p: Any, batch: Batch) -> Any:
        objective = step.objective_of(run, batch, jnp.int32(0))
        return step.gradients(p, batch, objective, run, single())

    return jax.jit(take).lower(*inputs(run)).compile()


def in_turn(programs: dict[Any, Any], run: RunConfig, rounds: int,
            clock: Callable[[], float] = time.perf_counter) -> dict[Any, list[float]]:
    """Seconds of each program by a clock, one after another, `rounds` times."""
    found: dict[Any, list[float]] = {name: [] for name in programs}
    p, batch = inputs(run)
    for program in programs.values():
        jax.block_until_ready(program(p, batch))
    for _ in range(rounds):
        for name, program in programs.items():
            begin = clock()
            jax.block_until_ready(program(p, batch))
            found[name].append(clock() - begin)
    return found


def only(steps: Lockstep, kinds: tuple[Kind, ...], repeats: int) -> Program:
    """A program in which one rank does one slot's work again and again and the others idle.

    The slot is one of a stage that is neither the first nor the last where there is any.
    """
    program = compile_table(steps)
    columns = program.instructions
    of = program.branches.index(kinds)
    found = [(rank, slot) for rank, row in enumerate(steps.table) for slot in range(steps.slots)
             if columns.branch[rank, slot] == of
             and all(0 < op.stage < steps.schedule.stages - 1 for op in row[slot])]
    rank, slot = found[len(found) // 2]
    idle = program.branches.index(())

    def one(name: str, a: np.ndarray) -> np.ndarray:
        made = np.full((a.shape[0], repeats), idle if name == "branch" else -1, np.int32)
        is_sent = name.startswith(("y_", "dx_"))
        made[rank] = -1 if is_sent else a[rank, slot]
        return made

    columns = type(columns)(**{n: one(n, a) for n, a in columns._asdict().items()})
    return dataclasses.replace(program, instructions=columns)
