"""Programs of a run of which a part learns: the parameters of a forward pass, and gradients.

Frozen weights have no gradients, no moments and no masters. They are given to each program beside
the state, which a step takes donated.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax import Array

from dsjax.config.run import RunConfig
from dsjax.layers.backend import Backend
from dsjax.model import loss as losses
from dsjax.model import transformer, tuned
from dsjax.model.loss import Batch, LossParts, Objective
from dsjax.model.transformer import TransformerParams
from dsjax.ops.token_loss import TokenLoss
from dsjax.params import Tree
from dsjax.train import step
from dsjax.train.state import TrainState
from dsjax.train.step import StepMetrics


def used(run: RunConfig, backend: Backend, given: Any) -> TransformerParams:
    """The parameters of a forward pass, inside a program, from what `Frozen.given` gave it."""
    specs = transformer.specs(run.model)
    if not tuned.is_partial(run):
        return backend.layout.gather_params(given, specs)
    learnt, frozen = given
    return tuned.join(run, backend.layout.gather_params(learnt, tuned.specs(run)),
                      backend.layout.gather_params(frozen, specs))


def make_step(run: RunConfig, backend: Backend, token_loss: TokenLoss) -> Callable[..., Any]:
    """As `step.make_train_step`, of state, batch and frozen weights."""
    def take(state: TrainState, batch: Batch,
             frozen: TransformerParams) -> tuple[TrainState, StepMetrics]:
        differentiate = functools.partial(gradients, frozen=frozen)
        return step.make_train_step(run, backend, token_loss, differentiate)(state, batch)

    return take


def gradients(p: Tree, batch: Batch, objective: Objective, run: RunConfig, backend: Backend, *,
              frozen: TransformerParams) -> tuple[Tree, Array, LossParts]:
    """As `step.gradients`, of the part that learns beside frozen weights."""
    specs = tuned.specs(run)
    frozen = backend.layout.gather_params(frozen, transformer.specs(run.model))
    p = backend.layout.gather_params(p, specs)

    def part_loss(p: Tree, part: Batch) -> tuple[Array, LossParts]:
        return losses.loss(tuned.join(run, p, frozen), part, objective, run.model, backend)

    def grad(p: Tree, part: Batch) -> Any:
        out, grads = jax.value_and_grad(part_loss, has_aux=True)(p, part)
        return out, backend.layout.reduce_scatter_grads(grads, specs)

    if run.train.microbatches == 1:
        (total, parts), grads = grad(p, batch)
        return grads, total, parts
    return step.accumulate(grad, p, batch, run.train.microbatches, backend)


class BesideFrozen:
    """A compiled step that is given the frozen weights with each batch."""

    def __init__(self, program: Any, frozen: TransformerParams) -> None:
        """program: jitted, of state, batch and frozen weights."""
        self._program, self._frozen = program, frozen

    def __call__(self, state: Any, batch: Batch) -> Any:
        """Take a step; the state is donated."""
        return self._program(state, batch, self._frozen)

    def lower(self, state: Any, batch: Batch) -> Any:
        """As jax.jit's."""
        return self._program.lower(state, batch, self._frozen)
