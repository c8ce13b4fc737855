"""State that a run carries from step to step, and how it is born."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax import Array

from dsjax import params
from dsjax.config.run import OptimizerConfig, RunConfig
from dsjax.model import tuned
from dsjax.optim.adamw import adamw
from dsjax.params import Tree


@struct.dataclass
class TrainState:
    """Parameters (float32 masters), moments, and counts; saved and restored whole."""

    step: Array  # [] int32, optimizer steps taken, skipped ones included
    params: Any  # TransformerParams, or the part of a model that learns (model/tuned.py)
    opt: Any
    skipped: Array  # [] int32, steps left out for a non-finite gradient
    skipped_in_row: Array  # [] int32


def optimizer(
    specs: Tree, cfg: OptimizerConfig
) -> optax.GradientTransformationExtraArgs:
    """AdamW with masks read from the specs; the learning rate is named at each update."""
    return adamw(
        decay_mask=params.decay_mask(specs),
        trainable=params.trainable_mask(specs),
        b1=cfg.beta1,
        b2=cfg.beta2,
        eps=cfg.eps,
        weight_decay=cfg.weight_decay,
        clip=cfg.clip,
        moment_dtype=jnp.dtype(cfg.moments),
    )


def init(run: RunConfig, key: Array) -> TrainState:
    """Draw the start of a run; call it under jit to be born where its arrays belong."""
    return begin(run, tuned.init(run, key))


def begin(run: RunConfig, start: Tree) -> TrainState:
    """The state of a run before its first step, from parameters in float32.

    Every leaf is a buffer of its own, inside jit or not: a training step takes the state donated.
    The parameters are `start` itself, which is gone with the state.
    """
    specs = tuned.specs(run)
    step, skipped, in_row = (jnp.zeros((), jnp.int32) for _ in range(3))
    return TrainState(step, start, optimizer(specs, run.optimizer).init(start), skipped, in_row)


def abstract(run: RunConfig) -> TrainState:
    """Shapes and dtypes of a run's state, nothing allocated."""
    return jax.eval_shape(lambda: init(run, jax.random.key(0)))
