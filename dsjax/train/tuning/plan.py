"""Memory that tuning takes on one device, counted by part before anything is made.

    frozen weights    as they rest: float32, bfloat16, or codes of a byte with a scale a tile
    masters           4 bytes a number that learns
    moments           two of each, in the optimizer's dtype
    gradients         4 bytes a number that learns
    activations       residual streams between layers, and one layer's, which are made again
    decoded experts   one layer's experts as products read them, and whole ones that learn
    logits            of one chunk, thrice: logits, exponentials and their gradient

Weights and state are exact: what is counted is what arrays hold. The last three are of a step that
makes each layer again (--machine.remat full); a compiler may hold some of them twice, or never.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import jax.numpy as jnp

from dsjax import params, weights
from dsjax.checkpoint.tuned import held
from dsjax.config.run import RunConfig
from dsjax.model import transformer, tuned
from dsjax.runtime import fit, needs


@dataclass(frozen=True)
class Parts:
    """Bytes of each part."""

    frozen: int
    masters: int
    moments: int
    gradients: int
    activations: int
    decoded_experts: int
    logits: int

    @property
    def total(self) -> int:
        """Bytes of all parts at once."""
        return sum(dataclasses.astuple(self))


def count(run: RunConfig, frozen: int | None = None) -> Parts:
    """Count the bytes of one device that tunes a run.

    frozen: bytes of the weights that rest, as they are stored; None counts them by the run's form,
    in bfloat16 where that is `stored`.
    """
    learnt = sum(math.prod(s.shape) for s in params.leaves(tuned.specs(run)) if s.is_trainable)
    resting = params.size(tuned.specs(run)) - learnt
    rows = run.train.batch_size // run.train.microbatches
    full = dataclasses.replace(run, machine=dataclasses.replace(run.machine, remat="full"))
    found = needs.training(full)
    return Parts(
        frozen=0 if not tuned.is_partial(run) else form_bytes(run) if frozen is None else frozen,
        masters=4 * (learnt + resting),
        moments=2 * learnt * jnp.dtype(run.optimizer.moments).itemsize,
        gradients=4 * learnt,
        activations=found.activations + found.mtp_activations,
        decoded_experts=_decoded(run),
        logits=3 * rows * min(needs.CHUNK, run.train.seq_len) * run.model.vocab * 4,
    )


def form_bytes(run: RunConfig) -> int:
    """Bytes of a model's weights in the form in which a run holds them."""
    part = run.lora or run.experts
    form = "bfloat16" if part is None or part.base == "stored" else part.base
    specs = transformer.specs(run.model)
    biases = sum(math.prod(s.shape) for s in params.leaves(specs) if s.role == "router_bias")
    return needs.weight_bytes(specs, form) + biases * (0 if form == "float32" else 2)


def stored_bytes(run: RunConfig) -> int:
    """Bytes of the frozen weights of a folder as a run holds them; no number is read."""
    part = run.lora or run.experts
    assert part is not None, "weights rest where a part learns"
    return weights.use(
        str(run.init_from),
        lambda base: sum(leaf.nbytes for leaf in held(base, part.base).leaves.values()),
        choice=weights.Choice(model=run.model), say=lambda sentence: None)


def _decoded(run: RunConfig) -> int:
    """One layer's experts in the numbers that products multiply."""
    if run.model.moe is None or not tuned.is_partial(run):
        return 0
    moe, size = run.model.moe, max(run.precision.operand_bytes, 2)
    return 3 * moe.experts * moe.expert_dim * run.model.d_model * size


def table(run: RunConfig) -> str:
    """The parts as lines of text."""
    found = count(run, stored_bytes(run) if tuned.is_partial(run) else None)
    named = {field.name.replace("_", " "): getattr(found, field.name)
             for field in dataclasses.fields(found)} | {"in all": found.total}
    rows = [f"{name:<16} {fit.said(size):>10}" for name, size in named.items()]
    learns = sum(math.prod(s.shape) for s in params.leaves(tuned.specs(run)) if s.is_trainable)
    return "\n".join([f"{learns:,} numbers learn; a device holds", *rows,
                      "Activations are those of --machine.remat full."])
