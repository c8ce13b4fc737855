"""Weights from the trainer to the engine in the same process.

The trainer keeps float32 masters where a run's layout has them; the engine reads them where it
decodes: on the same devices in the same layout, in one of its own (a trainer may be a pipeline, an
engine may not), or on devices of its own. On one device embedding, head, final norm and stacks of
one layer are the trainer's own arrays, without a copy, and the layers of longer stacks are copied
out of them, as decoding reads layers one by one. Over a mesh parts that rest elsewhere are moved.

The next training step takes the shared arrays with its donated state, so the engine must be given
the new ones before it serves again. Pages of the cache are forgotten: they hold what the former
weights made of their tokens, whoever asks for the same question again.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh

from dsjax import params as trees
from dsjax.config.parallel import ParallelConfig
from dsjax.config.run import RunConfig
from dsjax.data.tokenizers.tokenizer import Tokenizer
from dsjax.errors import UserError
from dsjax.infer.engine.device import Device, Setting
from dsjax.infer.engine.engine import Engine
from dsjax.infer.model import Model
from dsjax.layers.backend import Backend
from dsjax.model import transformer
from dsjax.model.transformer import TransformerParams
from dsjax.parallel import mesh as meshes
from dsjax.parallel import rules
from dsjax.params import Spec, Tree
from dsjax.rl.update import rl_of
from dsjax.runtime import backend as backends
from dsjax.train import sharding


@dataclass(frozen=True)
class Places:
    """Devices of a run's two sides; a mesh of None is the first device."""

    trainer: Mesh | None
    engine: Mesh | None
    layout: ParallelConfig
    """The engine's."""

    @property
    def are_one(self) -> bool:
        """True if both sides have the same devices in the same order."""
        return self.engine is self.trainer

    @property
    def score(self) -> Mesh | None:
        """The mesh of the trainer's log-probabilities, which has no pipeline."""
        is_piped = self.trainer is not None and meshes.PIPE in self.trainer.axis_names
        return self.engine if is_piped else self.trainer

    def __str__(self) -> str:
        """Name the engine's layout and devices."""
        if self.are_one:
            return "the trainer's layout and devices"
        mine, theirs = ({jax.devices()[0]} if mesh is None else set(mesh.devices.flat)
                        for mesh in (self.trainer, self.engine))
        where = "devices of its own" if mine.isdisjoint(theirs) else "the trainer's devices"
        return f"{self.layout}, on {where}"


def open_places(run: RunConfig) -> Places:
    """The meshes of a run's trainer and engine.

    Raises:
        UserError: rows, experts or devices do not divide, or are too few.
    """
    cfg, trainer = rl_of(run), sharding.open_mesh(run)
    layout = cfg.engine or run.parallel
    if layout.pipe > 1 or layout.interleave:
        raise UserError("the engine lies on no pipeline and interleaves nothing; give it a layout "
                        "of its own by --rl.engine.data, --rl.engine.fsdp and --rl.engine.expert")
    if cfg.engine is None and not cfg.engine_apart:
        return Places(trainer, trainer, layout)
    meshes.check(layout, run.model, [layout.row_devices], 1, flag="--rl.engine")
    devices, first = jax.devices(), run.parallel.devices if cfg.engine_apart else 0
    if first + layout.devices > len(devices):
        beside = f" beside the trainer's {first}" if first else ""
        raise UserError(f"the engine's layout {layout} needs {layout.devices} devices{beside}, and "
                        f"there are {len(devices)}; choose smaller --rl.engine.data, .fsdp and "
                        f".expert{', or leave --rl.engine-apart out' * bool(first)}")
    return Places(trainer, meshes.make_mesh(layout, devices[first:]), layout)


def open_engine(run: RunConfig, params: TransformerParams, words: Tokenizer,
                places: Places) -> Engine:
    """Make the engine of a run's rollouts, with room for all at once."""
    cfg, mesh = rl_of(run), places.engine
    backend = backends.for_decoding(run.model, run.precision, places.layout, mesh,
                                    machine=run.machine)
    length = cfg.max_prompt_tokens + cfg.max_new_tokens
    model = Model(run.model, placed(params, run, mesh), words, length, backend, mesh,
                  places.layout)
    ranks = 1 if mesh is None else mesh.size
    return Engine(Device(model, Setting(
        slots=-(-cfg.rows // ranks), max_len=length, chunk=cfg.max_prompt_tokens, page_size=16,
        top_logprobs=1, keep_routes=run.model.moe is not None and cfg.replay_routes)))


def exchange(engine: Engine, params: TransformerParams, run: RunConfig,
             mesh: Mesh | None) -> None:
    """Let the engine, on its mesh, serve with the trainer's present parameters."""
    engine.exchange(placed(params, run, mesh))


def placed(params: TransformerParams, run: RunConfig, mesh: Mesh | None) -> TransformerParams:
    """Parameters where decoding uses them; the same arrays wherever they are there already.

    What is multiplied in bfloat16 travels and rests in it: half the bytes, the same products.
    """
    specs = transformer.specs(run.model)
    if run.precision.matmul == "bf16":
        params = _narrow(params, specs)
    return params if mesh is None else jax.device_put(params, rules.used_shardings(specs, mesh))


def _narrow(params: TransformerParams, specs: Tree) -> TransformerParams:
    def one(spec: Spec, a: Array) -> Array:
        return a.astype(jnp.bfloat16) if spec.is_product else a

    return jax.tree.map(one, specs, params, is_leaf=trees.is_spec)


def score_backend(run: RunConfig, places: Places) -> Backend:
    """The trainer's backend where it takes log-probabilities."""
    if places.score is not places.trainer:
        run = dataclasses.replace(run, parallel=places.layout)
    return backends.for_run(run, places.score)


def scored(params: TransformerParams, run: RunConfig, places: Places) -> TransformerParams:
    """Parameters where the trainer takes log-probabilities: as they rest, but for a pipeline's."""
    return params if places.score is places.trainer else placed(params, run, places.score)
