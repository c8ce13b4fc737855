"""A model that can be asked: the weights of a folder on the devices there are, with a tokenizer.

    model = infer.load("runs/tiny")
    model = infer.load("DeepSeek-V2-Lite", Choice("bf16", ParallelConfig(expert=8)))
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import jax
from jax.sharding import Mesh

from dsjax import disk, weights
from dsjax.checkpoint import store
from dsjax.config.machine import MachineConfig
from dsjax.config.model import ModelConfig, dropless
from dsjax.config.parallel import ParallelConfig
from dsjax.config.run import PrecisionConfig
from dsjax.config.stored import run_from_json
from dsjax.data.tokenizers import tokenizer
from dsjax.data.tokenizers.tokenizer import Tokenizer
from dsjax.errors import UserError, say
from dsjax.infer.offload import load as offload
from dsjax.infer.offload.cache import ExpertCache, Room
from dsjax.layers.backend import Backend
from dsjax.model import transformer
from dsjax.model.transformer import TransformerParams
from dsjax.parallel import mesh as meshes
from dsjax.parallel import rules
from dsjax.runtime import backend as backends


@dataclass(frozen=True)
class Choice:
    """Settings to run a model with; None is as the run in its folder was."""

    precision: Literal["fp32", "tf32", "bf16", "fp8"] | None = None
    """Operands of the matrix products; float32 for a released checkpoint."""
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    """The devices that share the rows, the matrices and the experts."""
    end_token: str | None = None
    """Name of the token that ends a text, where no file beside the tokenizer names it."""
    experts: Room | None = None
    """Room on the device for routed experts that lie elsewhere; None holds all of them there."""


@dataclass(frozen=True)
class Model:
    """Weights on their devices, what computes with them, and the tokenizer they belong to."""

    cfg: ModelConfig
    params: TransformerParams
    tokenizer: Tokenizer
    context: int
    """Positions a row takes by default."""
    backend: Backend
    mesh: Mesh | None
    layout: ParallelConfig = field(default_factory=ParallelConfig)
    """Of the mesh."""
    experts: ExpertCache | None = None
    """The cache of the routed experts, which `params` are then without, as they are of MTP
    modules."""


@dataclass(frozen=True)
class Described:
    """The config of a folder, before any weight is read."""

    cfg: ModelConfig
    context: int
    precision: PrecisionConfig
    machine: MachineConfig


def load(folder: Path | str, choice: Choice = Choice(),
         say: Callable[[str], None] = say) -> Model:
    """Read a run folder or a released one; each number goes onto the devices that use it.

    With `choice.experts` routed experts stay in the files or the host's memory, and go onto the
    device as tokens choose them.
    """
    folder = Path(folder)
    said = described(folder)
    words = tokenizer.load(folder / "tokenizer.json", end=choice.end_token)
    _hold(words, folder, said.cfg.vocab)
    mesh = _mesh(choice.parallel, said.cfg)
    if choice.experts is not None and mesh is not None:
        raise UserError(f"a cache of experts is of one device, and --parallel has "
                        f"{choice.parallel.devices}; leave --parallel or --experts-cache out")
    precision = said.precision
    if choice.precision is not None:
        precision = dataclasses.replace(precision, matmul=choice.precision)
    backend = backends.for_decoding(said.cfg, precision, choice.parallel, mesh,
                                    machine=said.machine)
    where = None if mesh is None else rules.used_shardings(transformer.specs(said.cfg), mesh)
    dtype = "stored" if precision.operand_bytes == 1 else "dequantized"
    if choice.experts is not None:
        cfg = dropless(dataclasses.replace(said.cfg, mtp_depth=0))
        params, experts = offload.load(folder, cfg, backend, dtype, room=choice.experts, say=say)
        return Model(cfg, params, words, said.context, backend, mesh, experts=experts)
    params = weights.load(folder, dtype, where, choice=weights.Choice(model=said.cfg), say=say)
    return Model(said.cfg, params, words, said.context, backend, mesh, choice.parallel)


def described(folder: Path) -> Described:
    """Read what a folder says of its model."""
    path = folder / "config.json"
    if not path.is_file():
        what = "has no config.json" if folder.is_dir() else "is not a folder"
        raise UserError(f"{folder} {what}; {weights.REMEDY}")
    if weights.is_released(folder):
        context: Any = disk.read_object(path, weights.REMEDY).get("max_position_embeddings")
        return Described(weights.model(folder), context if isinstance(context, int) else DEFAULT,
                       PrecisionConfig(), MachineConfig(unroll=1))
    run = run_from_json(path)
    return Described(run.model, run.train.seq_len, run.precision, _elsewhere(run.machine))


def _elsewhere(trained: MachineConfig) -> MachineConfig:
    """The choices of a run's machine that hold on any other: a kernel that it named may not be
    there, and is taken where it is."""
    return MachineConfig(
        fp8_matmul="auto" if trained.fp8_matmul == "kernel" else trained.fp8_matmul,
        attention="auto" if trained.attention == "kernel" else trained.attention, unroll=1)


DEFAULT = 4096
"""Context of a released checkpoint whose config names none."""


def _mesh(layout: ParallelConfig, cfg: ModelConfig) -> Mesh | None:
    """The mesh of a layout, refused where decoding cannot lie on it."""
    is_ordered = layout.schedule != ParallelConfig().schedule
    if layout.pipe > 1 or layout.interleave or is_ordered:
        flag = (f"pipe {layout.pipe}" if layout.pipe > 1 else
                "interleave" if layout.interleave else f"schedule {layout.schedule}")
        raise UserError(f"--parallel.{flag} orders the work of a training step, and decoding has "
                        "none; leave it out, and use --parallel.data, --parallel.fsdp and "
                        "--parallel.expert")
    meshes.check(layout, cfg, [layout.row_devices], 1)
    if layout.devices == 1 and jax.process_count() == 1:
        return None
    return meshes.make_mesh(layout)


def _hold(words: Tokenizer, folder: Path, vocab: int) -> None:
    """Refuse a tokenizer that the weights of a folder do not belong to."""
    kept = None if weights.is_released(folder) else store.tokenizer_of(folder)
    if kept is not None and not words.has_fingerprint(kept):
        raise UserError(
            f"{folder / 'tokenizer.json'} is not the tokenizer that the weights of {folder} belong "
            f"to (fingerprint {words.fingerprint}, not {kept}), so its ids mean other words; put "
            "that one back")
    if words.vocab > vocab:
        raise UserError(
            f"{folder / 'tokenizer.json'} has {words.vocab:,} ids, but the model knows {vocab:,}; "
            "put back the tokenizer it was trained with")
