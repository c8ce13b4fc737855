"""Prefill of a long prompt by the engine, compiled for a machine that is not here.

The program is the engine's own: every device reads a piece of a prompt of its own into its pages,
and tokens go to the devices of their experts and back. Weights, pages and slots are shapes with
shardings; nothing is allocated or run. MTP modules draft and do not read: they are left out.

Axes: R ranks, E experts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from dsjax.config.model import ModelConfig, dropless
from dsjax.config.run import RunConfig
from dsjax.errors import UserError
from dsjax.infer import Model, Sampling
from dsjax.infer.engine import steps
from dsjax.infer.engine.config import pages_of
from dsjax.infer.engine.device import backends_of
from dsjax.infer.engine.place import Place
from dsjax.infer.engine.steps import Served, Slots
from dsjax.infer.sample import sampling_params
from dsjax.layers import paged
from dsjax.layers.backend import Backend
from dsjax.layers.moe import MoEParams
from dsjax.model import transformer
from dsjax.model.transformer import TransformerParams
from dsjax.parallel import mesh as meshes
from dsjax.parallel import rules
from dsjax.params import Tree
from dsjax.plan import ahead, target
from dsjax.plan.ahead import Compiled, Refused
from dsjax.plan.target import Target
from dsjax.plan.train_step import machine_bytes
from dsjax.runtime import backend as backends

PAGE = 32
"""Positions of a page, as the engine's."""


@dataclass(frozen=True)
class Prompt:
    """The prompt that every device reads, and how."""

    positions: int
    """Of the prompt, each of which is kept."""
    piece: int
    """Tokens that are read at once."""

    def __post_init__(self) -> None:
        """Refuse prompts and pieces that are none."""
        if self.positions < 1:
            raise UserError(f"--prefill {self.positions} is no prompt; use at least 1")
        if not 1 <= self.piece <= self.positions:
            raise UserError(f"--prefill {self.positions} cannot be read in pieces of "
                            f"{self.piece}; use --piece 1 to {self.positions}")


@dataclass(frozen=True)
class Plan:
    """Needs of a prefill on a machine; bytes are of one device."""

    run: RunConfig
    target: Target
    prompt: Prompt
    result: Compiled | Refused
    parts: dict[str, int]
    """By kind: weights, pages and slots, and what the program works with."""
    total: int
    limit: int

    @property
    def fits(self) -> bool:
        """True where a device has enough memory."""
        return self.total <= self.limit


@dataclass(frozen=True)
class Laid:
    """The program and its arguments as shapes on a machine's devices."""

    step: Any
    args: tuple[Any, ...]
    parts: dict[str, int]
    """Bytes of a device that hold weights, and pages and slots."""


def plan(run: RunConfig, machine: Target, prompt: Prompt) -> Plan:
    """Compile the program that reads a piece of a prompt, at the run's model and layout.

    Its needs are added to the weights, some of which it does not read: the head lies there, too.
    """
    laid = lay(run, machine, prompt)
    result = ahead.compile_for(machine, laid.step, *laid.args)
    needed, limit = machine_bytes(result, machine)
    read = result.arguments if isinstance(result, Compiled) else sum(laid.parts.values())
    parts = laid.parts | {"activations and temporaries": needed - read}
    return Plan(run, machine, prompt, result, parts, sum(parts.values()), limit)


def lay(run: RunConfig, machine: Target, prompt: Prompt) -> Laid:
    """Lay the program's arguments over a machine's devices; nothing is compiled.

    Weights rest as released ones do that are multiplied in bfloat16: in bfloat16.
    """
    cfg = dropless(run.model)
    mesh = _mesh(run, machine)
    model = Model(cfg, _params(cfg, mesh), None, prompt.positions,  # type: ignore[arg-type]
                  backends.for_decoding(cfg, run.precision, run.parallel, mesh), mesh,
                  run.parallel)
    backend, _ = backends_of(model, cfg)
    place = Place(mesh)

    def on_ranks(make: Callable[[], Tree]) -> Tree:
        where = meshes.sharding(mesh, meshes.AXES)
        return jax.tree.map(lambda a: jax.ShapeDtypeStruct(
            (place.ranks, *a.shape), a.dtype, sharding=where), jax.eval_shape(make))

    width = paged.table_width(prompt.positions, PAGE)
    served = on_ranks(lambda: _served(model.params, cfg, backend, width, run.parallel.expert > 1))
    asked = on_ranks(lambda: _piece(width))
    step = place.program(steps.read, (model.params,), cfg=cfg, backend=backend,
                         length=prompt.piece)
    return Laid(step, ((model.params,), served, asked), {
        "weights": ahead.shard_bytes(model.params), "pages and slots": ahead.shard_bytes(served)})


def _mesh(run: RunConfig, machine: Target) -> Mesh:
    """The mesh of a layout on all devices of a machine; refused where decoding cannot lie on it."""
    layout = run.parallel
    if layout.pipe > 1 or layout.interleave:
        raise UserError("a prefill is no training step: leave --parallel.pipe and "
                        "--parallel.interleave out")
    if layout.devices != machine.devices or machine.devices == 1:
        raise UserError(
            f"{machine.name} has {machine.devices} devices and the layout {layout} uses "
            f"{layout.devices}; choose --parallel sizes whose product is {machine.devices}, on a "
            "machine of at least 2")
    meshes.check(layout, run.model, [layout.row_devices], 1)
    return meshes.make_mesh(layout, target.devices(machine))


def _params(cfg: ModelConfig, mesh: Mesh) -> TransformerParams:
    """Shapes of the main model's weights where its layers use them, layers written out."""
    specs = transformer.specs(cfg).replace(mtp=None)
    stacked = jax.tree.map(lambda where, spec: jax.ShapeDtypeStruct(
        spec.shape, jnp.bfloat16, sharding=where), rules.used_shardings(specs, mesh), specs)

    def cut(a: Any) -> Any:
        one = jax.ShapeDtypeStruct((1, *a.shape[1:]), a.dtype, sharding=a.sharding)
        return [one] * a.shape[0]

    return transformer.written_out(stacked, cut)


def _served(p: TransformerParams, cfg: ModelConfig, backend: Backend, width: int,
            is_measured: bool) -> Served:
    """Pages and one slot of a device."""
    pools = steps.empty_pools(p, cfg, backend, pages=pages_of(width * PAGE, PAGE, 0), size=PAGE,
                              depth=0)
    slots = Slots(
        tokens=jnp.zeros((1, width * PAGE), jnp.int32), newest=jnp.zeros(1, jnp.int32),
        prompt_len=jnp.zeros(1, jnp.int32), keys=jax.random.split(jax.random.key(0), 1),
        sampling=sampling_params([Sampling(temperature=0)], "any"),
        recent=jnp.zeros((1, 0, cfg.d_model), backend.dtype))
    loads = None
    if is_measured and cfg.moe is not None:
        loads = {name: jnp.zeros((1, cfg.moe.experts)) for name, stack in p.stacks.items()
                 if isinstance(stack.ffn, MoEParams)}
    return Served(slots, pools, loads, None)


def _piece(width: int) -> steps.Piece:
    """A piece of a text of one slot."""
    zero = jnp.zeros((), jnp.int32)
    return steps.Piece(zero, jnp.zeros((1, width), jnp.int32), zero, zero)
