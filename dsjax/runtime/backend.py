"""The one place where a Backend is chosen: from a precision, a layout, a mesh and a device.

Training, inference and everything else are handed the Backend that comes out and never build one.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh

from dsjax.config.machine import MachineConfig
from dsjax.config.model import ModelConfig
from dsjax.config.parallel import ParallelConfig
from dsjax.config.run import PrecisionConfig, RunConfig
from dsjax.layers import remat
from dsjax.layers.backend import Backend, Dispatch, single
from dsjax.numerics.precision import Matrix, value
from dsjax.ops import experts_few
from dsjax.ops.expert_mlp import ExpertMLP, batched
from dsjax.parallel import mesh_backend, overlap
from dsjax.runtime import attention, precision

FORWARD = MachineConfig(unroll=1)
"""For programs without a gradient: nothing is made again, as nothing waits."""
WRITTEN_OUT = 32
"""Layers of a model that are all written out on one GPU at most; a scan copies what waits for the
backward pass in and out of its carries there."""


def backend_for(model: ModelConfig, numerics: PrecisionConfig, layout: ParallelConfig | None = None,
                mesh: Mesh | None = None, *, machine: MachineConfig | None = None,
                device: jax.Device | None = None) -> Backend:
    """The backend of a model in a precision, on one device or over the mesh of a layout.

    `device` stands for the machine; None takes the first of the mesh, or of this process.
    `machine` says what recomputation keeps; None is for programs without a gradient.
    """
    if device is None:
        device = jax.devices()[0] if mesh is None else mesh.devices.flat[0]
    machine = machine or FORWARD
    products = precision.precision_of(numerics.matmul, machine, device)
    backend = dataclasses.replace(single(products, jnp.dtype(numerics.activations)),
                                  remat=remat.policy(machine.remat),
                                  unroll=layers_at_once(machine, model, device, mesh))
    backend = attention.on(backend, machine, device)
    return backend if layout is None else over(backend, model, layout, mesh)


def layers_at_once(machine: MachineConfig, model: ModelConfig, device: jax.Device,
                   mesh: Mesh | None = None) -> int:
    """Layers that one iteration of a scan over a stack holds."""
    if machine.unroll is not None:
        return machine.unroll
    is_alone = device.platform == "gpu" and (mesh is None or mesh.size == 1)
    return model.layers if is_alone and model.layers <= WRITTEN_OUT else 1


def for_run(run: RunConfig, mesh: Mesh | None = None, device: jax.Device | None = None) -> Backend:
    """The backend of a run, on its mesh where it has one."""
    return backend_for(run.model, run.precision, run.parallel, mesh,
                       machine=attention.of_rows(run), device=device)


def over(backend: Backend, model: ModelConfig, layout: ParallelConfig,
         mesh: Mesh | None) -> Backend:
    """A single device's backend over the mesh of a layout; as it is without one."""
    if mesh is None:
        return backend
    backend = mesh_backend.on_mesh(backend, mesh, layout, model)
    if not layout.interleave:
        return backend
    halves = functools.partial(overlap.interleave, constrain=backend.layout.constrain)
    return dataclasses.replace(backend, interleave=halves)


def for_decoding(model: ModelConfig, numerics: PrecisionConfig,
                 layout: ParallelConfig | None = None, mesh: Mesh | None = None, *,
                 machine: MachineConfig | None = None) -> Backend:
    """The backend of a model that decodes; on one device `decoding` it."""
    backend = backend_for(model, numerics, layout, mesh, machine=machine)
    return backend if mesh is not None else decoding(backend)


def decoding(backend: Backend) -> Backend:
    """One device's backend with experts written out where a batch holds few assignments."""
    return dataclasses.replace(
        backend, dispatch=functools.partial(_dispatch_few, many=backend.dispatch))


@functools.cache
def default_backend() -> Backend:
    """Decoding on one device in float32; one object, so that its programs are found again."""
    return decoding(single())


def _dispatch_few(x: Array, experts: Array, weights: Array, w_gate_up: Matrix, w_down: Matrix,
                  mlp: ExpertMLP, *, many: Dispatch) -> tuple[Array, Array]:
    is_ours = mlp is batched(mlp.precision)  # a foreign one multiplies however few there are
    if is_ours and experts_few.is_few(experts.size, value(w_down).shape[0]):
        y = experts_few.experts_few(x, experts, weights, w_gate_up, w_down,
                                    precision=mlp.precision)
        return y, jnp.zeros(())
    return many(x, experts, weights, w_gate_up, w_down, mlp)


def for_rank(backend: Backend, model: ModelConfig, layout: ParallelConfig) -> Backend:
    """The backend of one rank of a pipeline, whose code is manual over the whole mesh.

    Only what moves between devices is another one: attention, the experts' products and all else
    that was handed in stay.
    """
    alone = single(backend.precision, backend.dtype)
    own: Dispatch = alone.dispatch
    if model.moe is not None and layout.expert > 1:
        own = functools.partial(mesh_backend.dispatch_here, layout=layout, moe=model.moe)
    return dataclasses.replace(backend, dispatch=own, layout=alone.layout,
                               interleave=alone.interleave)
