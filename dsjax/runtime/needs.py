"""Bytes that a run surely needs of one device, counted from its specs before anything is compiled.

Between steps masters and moments rest. When a step turns from its forward to its backward pass,
there are also what the layers kept (`activations`) and the gradients of the stack of layers that
comes first; when it ends, all gradients. Either is less than what a compiler asks for: not counted
are compute weights, which it may make a layer at a time, and every temporary within a layer. So
what does not fit by this count does not fit at all, and nothing that fits is refused by it. On a
pipeline activations are not counted.

Words of `activations`: what `remat` keeps of a token and layer (layers/remat.py), at the
narrowest it may be kept in.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from dsjax import params
from dsjax.config.model import MLAConfig, ModelConfig, MoEConfig
from dsjax.config.run import RunConfig
from dsjax.layers.backend import single
from dsjax.model import transformer, tuned
from dsjax.parallel import rules
from dsjax.params import Spec

CHUNK = 128  # positions of every row whose logits exist at once, see ops/token_loss.py
TILE = 128  # rows and columns of an 8-bit matrix that share a scale
BATCH_BYTES = 12  # of a position: token, segment, weight


@dataclass(frozen=True)
class Training:
    """Bytes of one device in training."""

    masters: int  # of what learns
    moments: int
    gradients: int  # in float32, all of them
    first_gradients: int  # those that are there beside all activations
    activations: int  # of the main model's layers
    mtp_activations: int  # of the modules, and the losses' gradients of what the head reads
    logits: int
    batch: int
    average: int  # on the host, where the run keeps one
    frozen: int = 0  # weights that rest, where a part learns

    @property
    def parts(self) -> dict[str, int]:
        """Parts that are there at the fullest moment, by name; the average is the host's."""
        rest = {"masters": self.masters, "moments": self.moments, "the batch": self.batch}
        rest |= {"frozen weights": self.frozen} if self.frozen else {}
        moments = ({"gradients": self.gradients},
                   {"activations": self.activations, "gradients": self.first_gradients},
                   {"activations": self.activations + self.mtp_activations, "logits": self.logits})
        return rest | max(moments, key=lambda parts: sum(parts.values()))

    @property
    def least(self) -> int:
        """Bytes that a device surely needs."""
        return sum(self.parts.values())


@dataclass(frozen=True)
class Serving:
    """Bytes of one device that decodes."""

    weights: int
    cache: int
    logits: int


def training(run: RunConfig, mesh: Mesh | None = None) -> Training:
    """Count the bytes that a device needs to train a run on a mesh; None is a single device."""
    specs, whole = tuned.specs(run), transformer.specs(run.model)
    held = _share(mesh, run.parallel.use_zero)
    masters, learnt = _sum(specs, lambda s: 4 * held(s)), _sum(specs, _of_learnt(held))
    main, is_partial = whole.stacks[run.model.stacks[-1].name], tuned.is_partial(run)
    # Of microbatches, sums of all gradients stand beside those of a part.
    is_cut = is_partial or run.train.microbatches > 1
    rows = _rows(run, mesh)
    return Training(
        masters=masters,
        moments=learnt // 2 * jax.numpy.dtype(run.optimizer.moments).itemsize,
        gradients=learnt,
        first_gradients=learnt if is_cut else _sum((main, whole.head), _of_learnt(held)),
        activations=0 if run.parallel.pipe > 1 else rows * _kept_of_a_row(run),
        mtp_activations=0 if run.parallel.pipe > 1 else rows * _kept_by_modules(run),
        logits=rows * min(CHUNK, run.train.seq_len) * run.model.vocab * 4,
        batch=rows * run.train.microbatches * (run.train.seq_len + 1) * BATCH_BYTES,
        average=masters if run.optimizer.ema_decay else 0,
        frozen=frozen(run, mesh) if is_partial else 0,
    )


def frozen(run: RunConfig, mesh: Mesh | None = None) -> int:
    """Bytes of a device's part of the weights that rest; as stored, at least those of FP8."""
    part = run.lora or run.experts
    assert part is not None, "weights rest where a part learns"
    specs, form = transformer.specs(run.model), part.base
    whole = weight_bytes(specs, "fp8" if form == "stored" else form)
    held = _share(mesh, run.parallel.use_zero)
    return whole * _sum(specs, held) // params.size(specs)


def serving(model: ModelConfig, rows: int, context: int, *, weights: str = "float32",
            cache: str = "float32", depth: int = 0) -> Serving:
    """Count the bytes that one device needs to decode `rows` rows of `context` positions.

    depth: MTP modules that draft. weights: float32, bfloat16, or fp8 as released.
    """
    specs = transformer.specs(model)
    specs = specs if depth else dataclasses.replace(specs, mtp=None)
    numbers = sum(math.prod(a.shape) for a in jax.tree.leaves(
        jax.eval_shape(lambda: transformer.empty_cache(model, 1, 1, single()))))
    per_token = numbers + depth * numbers // model.layers
    return Serving(
        weights=weight_bytes(specs, weights),
        cache=rows * context * per_token * np.dtype(cache).itemsize,
        logits=rows * model.vocab * 4,
    )


def weight_bytes(specs: Any, form: str) -> int:
    """Bytes of all weights: 4 or 2 a number, or `fp8`: product matrices in codes of a byte with a
    float32 scale each 128 x 128, the others in bfloat16."""
    if form != "fp8":
        size = {"float32": 4, "bfloat16": 2}[form]
        return _sum(specs, lambda s: size * math.prod(s.shape))
    return _sum(specs, _held_in_fp8)


def _held_in_fp8(spec: Spec) -> int:
    size = math.prod(spec.shape)
    if not spec.is_product:
        return 2 * size
    columns = spec.batch_dims + spec.contract_dims
    lead = math.prod(spec.shape[: spec.batch_dims])
    rows = math.prod(spec.shape[spec.batch_dims : columns])
    wide = math.prod(spec.shape[columns:]) // spec.parts
    return size + 4 * lead * spec.parts * -(-rows // TILE) * -(-wide // TILE)


def _sum(specs: Any, size: Callable[[Spec], int]) -> int:
    return sum(map(size, jax.tree.leaves(specs, is_leaf=params.is_spec)))


def _share(mesh: Mesh | None, use_zero: bool) -> Callable[[Spec], int]:
    """Return the function that counts the numbers of a parameter at rest on one device."""
    def held(spec: Spec) -> int:
        if mesh is None:
            return math.prod(spec.shape)
        where = rules.stored_shardings(spec, mesh, use_zero=use_zero)
        return math.prod(where.shard_shape(spec.shape))

    return held


def _of_learnt(held: Callable[[Spec], int]) -> Callable[[Spec], int]:
    """Bytes in float32 of what has a gradient: all but the biases that the balance rule moves."""
    return lambda spec: 4 * held(spec) if spec.is_trainable else 0


def _rows(run: RunConfig, mesh: Mesh | None) -> int:
    """Rows that go through a device at once."""
    devices = 1 if mesh is None else run.parallel.row_devices
    return -(-run.train.batch_size // (run.train.microbatches * devices))


def _kept_of_a_row(run: RunConfig) -> int:
    """Bytes kept of one row for the backward pass, and of one layer what is made again at once."""
    model, remat = run.model, run.machine.remat
    if tuned.is_partial(run):  # products with frozen matrices keep nothing for their gradients
        remat = "full"
    kinds = [(stack.count, model.moe if stack.is_moe else None) for stack in model.stacks]
    kept = [(layers, kept_of_a_token(run, moe, remat), kept_of_a_token(run, moe, "none"))
            for layers, moe in kinds]
    again = max(whole - part for _, part, whole in kept)
    return (sum(layers * part for layers, part, _ in kept) + again) * run.train.seq_len


def _kept_by_modules(run: RunConfig) -> int:
    """Bytes kept of one row by MTP modules, and of each loss the gradient of what the head reads.

    Modules run after the main model and turn back before it, so what its layers kept is there too.
    """
    model = run.model
    states = model.d_model * _wide(run)
    module = kept_of_a_token(run, model.moe, run.machine.remat) + states
    return (model.mtp_depth * (module + states) + states) * run.train.seq_len


def _wide(run: RunConfig) -> int:
    """Bytes of a number of the residual stream."""
    return np.dtype(jax.numpy.dtype(run.precision.activations)).itemsize


def kept_of_a_token(run: RunConfig, moe: MoEConfig | None, remat: str) -> int:
    """Bytes of a token in one layer of the main model."""
    model, a, wide = run.model, run.model.attention, _wide(run)
    if remat == "full":
        return model.d_model * wide
    low = max(run.precision.operand_bytes, 2)  # of what attention multiplies
    heads = a.heads * (a.value_dim if isinstance(a, MLAConfig) else a.head_dim)
    kept = (2 * model.d_model + heads) * wide  # before and after attention, and its heads
    if isinstance(a, MLAConfig):
        kept += (a.kv_rank + a.rope_dim + (a.q_rank or 0)) * wide
    hidden = model.dense_dim
    if moe is not None:
        hidden = (moe.shared_experts + moe.experts_per_token) * moe.expert_dim
    kept += 2 * hidden * min(wide, run.precision.operand_bytes)
    if remat == "none":
        qk = a.qk_dim if isinstance(a, MLAConfig) else a.head_dim
        kept += (2 * a.heads * qk + heads) * low
    return kept
