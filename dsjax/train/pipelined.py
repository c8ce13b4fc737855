"""The gradients of a step under a pipeline: as `step.gradients`, by pipeline.executor.

Microbatches, totals and weights of the losses are those of any other step; so is what comes out.
"""

from __future__ import annotations

import jax
from jax import Array
from jax.sharding import Mesh

from dsjax.config.run import RunConfig
from dsjax.errors import UserError
from dsjax.layers.backend import Backend
from dsjax.model import transformer
from dsjax.model.loss import Batch, LossParts, Objective
from dsjax.model.transformer import TransformerParams
from dsjax.numerics import precision
from dsjax.pipeline import executor, stage_work
from dsjax.pipeline.executor import Pipeline
from dsjax.pipeline.instructions import Program, compile_table, shortest
from dsjax.pipeline.schedules.build import build
from dsjax.runtime import backend as backends
from dsjax.train import step
from dsjax.train.step import Gradients


def compile_schedule(run: RunConfig) -> Program:
    """The program of a run's layout; refuses microbatches that its schedule cannot serve."""
    parallel, microbatches = run.parallel, run.train.microbatches
    try:
        schedule = build(parallel.schedule, parallel.pipe, microbatches)
    except UserError as error:
        raise UserError(f"--parallel.pipe {parallel.pipe} (ranks) --train.microbatches "
                        f"{microbatches}: {error}") from error
    return compile_table(shortest(schedule))


def check(run: RunConfig) -> None:
    """Refuse a run that its pipeline cannot take.

    Several processes draw different rows, so that a batch is drawn by all devices in equal shares.
    """
    train, devices = run.train, run.parallel.devices
    sizes = {"batch-size": train.batch_size}
    if train.batch_size_start is not None:
        sizes |= {"batch-size-start": train.batch_size_start,
                  "batch-size-multiple": train.batch_size_multiple}
    for name, rows in sizes.items():
        if jax.process_count() > 1 and rows % devices:
            raise UserError(
                f"a pipeline over {jax.process_count()} processes draws its rows on all its "
                f"devices, but {rows} rows do not divide over {devices}; choose --train.{name} "
                f"{-(-rows // devices) * devices}"
            )
    moe = run.model.moe
    if moe is not None and moe.capacity_factor is not None and run.parallel.row_devices > 1:
        raise UserError(
            f"--model.moe.capacity-factor {moe.capacity_factor} is of a microbatch's tokens, and "
            f"each of the {run.parallel.row_devices} devices of a pipeline's rank sees its own "
            "rows alone; "
            "choose --model.moe.capacity-factor None, or --parallel.data, .fsdp and .expert 1"
        )
    compile_schedule(run)


def describe(run: RunConfig) -> str:
    """Describe a run's pipeline for its header."""
    program = compile_schedule(run)
    schedule = program.schedule
    layers = stage_work.share(run.model.layers, schedule.stages)
    few = f"{layers[-1]} or {layers[0]}" if layers[0] != layers[-1] else f"{layers[0]}"
    return (f"{schedule.name}: {schedule.stages} stages of {few} layers, {schedule.chunks} on each "
            f"of {schedule.ranks} ranks; {program.steps.slots} slots for "
            f"{schedule.microbatches} microbatches, {program.buffers_b} activations of a stage "
            "kept")


def make_gradients(run: RunConfig, backend: Backend, mesh: Mesh) -> Gradients:
    """`step.gradients` over a pipeline; backend: the one on the mesh.

    Paired ticks are written out but on a CPU, which communicates when it does not compute.
    """
    program = compile_schedule(run)
    inside = backends.for_rank(backend, run.model, run.parallel)
    is_unrolled = mesh.devices.flat[0].platform != "cpu"
    pipe = Pipeline(program, mesh, run.model, inside, is_unrolled)

    def gradients(p: TransformerParams, batch: Batch, objective: Objective, run: RunConfig,
                  backend: Backend) -> tuple[TransformerParams, Array, LossParts]:
        specs, count = transformer.specs(run.model), run.train.microbatches
        quantized = None
        if backend.precision.casts_weights:
            quantized = precision.quantize_weights(p, specs, backend.precision)
            quantized = backend.layout.gather_params(quantized, specs)
        cut = step.microbatches(batch, count, backend)
        p = backend.layout.gather_params(p, specs)
        found = executor.run(pipe, p, quantized, cut, objective)
        return backend.layout.reduce_scatter_grads(found.grads, specs), found.total, found.parts

    return gradients
