"""One optimizer step as one pure function: loss, gradients, AdamW, balance rule, metrics.

`train_step(state, batch)` sees the whole step's batch. Totals are counted first, so microbatches
only cut the work: their gradients add up to the whole batch's, the router's loads are summed before
the bias moves once, and nothing is averaged over parts of unequal size.

Axes: B rows, T time, M microbatches, L mixture layers, J MTP depth, E experts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax import Array, lax

from dsjax.config.run import RunConfig
from dsjax.config.schedule import in_steps
from dsjax.layers.backend import Backend
from dsjax.layers.moe import MoEParams
from dsjax.model import loss as losses
from dsjax.model import transformer, tuned
from dsjax.model.block import BlockParams
from dsjax.model.loss import Batch, LossParts, Objective
from dsjax.model.transformer import TransformerParams
from dsjax.numerics import precision
from dsjax.ops.token_loss import TokenLoss, cross_entropy
from dsjax.optim import schedule
from dsjax.optim.adamw import global_norm
from dsjax.params import Tree, trainable_mask
from dsjax.train.state import TrainState, optimizer


@struct.dataclass
class StepMetrics:
    """Metrics of one step; read by the host one step late, so that the device never waits."""

    loss: Array  # [] all terms
    next_token: Array  # [] negative log-likelihood, nats a target
    accuracy: Array  # [] share of targets that are the likeliest token
    mtp: Array  # [J] as next_token, of each depth
    mtp_accuracy: Array  # [J]
    balance: Array  # [] weighted balance losses
    grad_norm: Array  # [] before clipping
    learning_rate: Array  # []
    loads: Array  # [L + J, E] assignments of real tokens
    extra_rounds: Array  # [] of the experts' exchange, all layers and microbatches
    targets: Array  # [] next-token targets
    skipped: Array  # [] steps skipped so far
    skipped_in_row: Array  # []


TrainStep = Callable[[TrainState, Batch], tuple[TrainState, StepMetrics]]
Gradients = Callable[[TransformerParams, Batch, Objective, RunConfig, Backend],
                     tuple[TransformerParams, Array, LossParts]]
"""As `gradients`: parameters, batch, objective, run, backend -> gradients, loss, its parts."""


def make_train_step(run: RunConfig, backend: Backend, token_loss: TokenLoss = cross_entropy,
                    differentiate: Gradients | None = None) -> TrainStep:
    """Build the step function of a run; jit it with the state donated.

    `token_loss` is what a next token costs; `differentiate` is `gradients`, or a pipeline's form.
    """
    differentiate = differentiate or gradients
    specs = tuned.specs(run)
    update = optimizer(specs, run.optimizer).update
    is_free = trainable_mask(specs)
    rates = in_steps(run.learning_rate, run.train.steps)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, StepMetrics]:
        rate = schedule.learning_rate(rates, state.step)
        objective = objective_of(run, batch, state.step, token_loss)
        grads, total, parts = differentiate(state.params, batch, objective, run, backend)
        with jax.named_scope("optimizer"):
            norm = global_norm(grads, is_free)
            is_finite = jnp.isfinite(norm) & jnp.isfinite(total)
            changes, opt = update(grads, state.opt, state.params, learning_rate=rate)
            moved = optax.apply_updates(state.params, changes)
            moved = move_biases(moved, parts.loads, bias_speed(run, state.step), run)
        kept = jax.tree.map(lambda new, old: jnp.where(is_finite, new, old), (moved, opt),
                            (state.params, state.opt))
        skip = (~is_finite).astype(jnp.int32)
        new_state = TrainState(
            step=state.step + 1,
            params=kept[0],
            opt=kept[1],
            skipped=state.skipped + skip,
            skipped_in_row=(state.skipped_in_row + 1) * skip,
        )
        targets = objective.totals.targets
        return new_state, _metrics(total, parts, norm, rate, targets, new_state)

    return train_step


def objective_of(run: RunConfig, batch: Batch, step: Array,
                 token_loss: TokenLoss = cross_entropy) -> Objective:
    """Return what a run minimizes at a step, on the whole batch of that step."""
    return Objective(losses.count(batch), schedule_mtp_weight(run, step), run.loss, token_loss)


def gradients(p: TransformerParams, batch: Batch, objective: Objective, run: RunConfig,
              backend: Backend) -> tuple[TransformerParams, Array, LossParts]:
    """Gradients of the whole batch's loss in float32, the loss, and its summed parts."""
    specs = transformer.specs(run.model)
    quantized = None
    if backend.precision.casts_weights:
        quantized = precision.quantize_weights(p, specs, backend.precision)
        quantized = backend.layout.gather_params(quantized, specs)
    p = backend.layout.gather_params(p, specs)

    def part_loss(p: TransformerParams, part: Batch) -> tuple[Array, LossParts]:
        tree = p if quantized is None else precision.attach(p, quantized, specs)
        return losses.loss(tree, part, objective, run.model, backend)

    def grad(p: TransformerParams, part: Batch) -> Any:
        out, grads = jax.value_and_grad(part_loss, has_aux=True)(p, part)
        return out, backend.layout.reduce_scatter_grads(grads, specs)

    if run.train.microbatches == 1:
        (total, parts), grads = grad(p, batch)
        return grads, total, parts
    return accumulate(grad, p, batch, run.train.microbatches, backend)


def accumulate(grad: Callable, p: Tree, batch: Batch, count: int,
               backend: Backend) -> tuple[Tree, Array, LossParts]:
    """Add up the gradients of `count` microbatches of equal rows, in float32."""
    cut = microbatches(batch, count, backend)

    def add(sums: Any, part: Batch) -> tuple[Any, None]:
        (total, parts), grads = grad(p, part)
        return jax.tree.map(jnp.add, sums, (grads, total, parts)), None

    first = jax.tree.map(lambda a: a[0], cut)
    shapes = jax.eval_shape(lambda: grad(p, first))
    (total, parts), grads = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    (grads, total, parts), _ = lax.scan(add, (grads, total, parts), cut)
    return grads, total, parts


def microbatches(batch: Batch, count: int, backend: Backend) -> Batch:
    """Cut a batch in `count` of equal rows: leaves [B, T+1] -> [M, B/M, T+1]."""
    def cut(a: Array) -> Array:
        return backend.layout.constrain(a.reshape(count, -1, *a.shape[1:]), (None, "batch", None))

    return jax.tree.map(cut, batch)


def schedule_mtp_weight(run: RunConfig, step: Array) -> Array:
    """lambda: `mtp_weight` early, `mtp_weight_late` from its fraction of the run on."""
    is_late = step.astype(jnp.float32) >= run.loss.mtp_late_from * run.train.steps
    return jnp.where(is_late, run.loss.mtp_weight_late, run.loss.mtp_weight)


def bias_speed(run: RunConfig, step: Array) -> Array:
    """gamma: `bias_speed`, and 0 from its fraction of the run on."""
    is_moving = step.astype(jnp.float32) < run.loss.bias_until * run.train.steps
    return jnp.where(is_moving, run.loss.bias_speed, 0.0)


def move_biases(p: TransformerParams, loads: Array, speed: Array,
                run: RunConfig) -> TransformerParams:
    """Apply the balance rule to every router, main layers first, then MTP's. loads [L + J, E].

    Routers rest where a part of the model learns.
    """
    if run.model.moe is None or not run.model.moe.has_bias or tuned.is_partial(run):
        return p
    delta = losses.bias_step(loads, speed)
    stacks, mtp = dict(p.stacks), p.mtp
    for stack in run.model.stacks:
        if stack.is_moe:
            stacks[stack.name] = _moved(stacks[stack.name], delta[: stack.count])
            delta = delta[stack.count :]
    if mtp is not None:
        mtp = dataclasses.replace(mtp, block=_moved(mtp.block, delta))
    return dataclasses.replace(p, stacks=stacks, mtp=mtp)


def _moved(block: BlockParams, delta: Array) -> BlockParams:
    assert isinstance(block.ffn, MoEParams), "only a mixture has a router"
    assert block.ffn.router.bias is not None, "has_bias gives every router a bias"
    router = dataclasses.replace(block.ffn.router, bias=block.ffn.router.bias + delta)
    return dataclasses.replace(block, ffn=dataclasses.replace(block.ffn, router=router))


def _metrics(total: Array, parts: LossParts, norm: Array, rate: Array, targets: Array,
             state: TrainState) -> StepMetrics:
    by_depth = jnp.maximum(parts.targets, 1e-9)
    nll, accuracy = parts.nll / by_depth, parts.correct / by_depth
    return StepMetrics(
        loss=total,
        next_token=nll[0],
        accuracy=accuracy[0],
        mtp=nll[1:],
        mtp_accuracy=accuracy[1:],
        balance=parts.balance,
        grad_norm=norm,
        learning_rate=rate,
        loads=parts.loads,
        extra_rounds=parts.extra_rounds,
        targets=targets,
        skipped=state.skipped,
        skipped_in_row=state.skipped_in_row,
    )
