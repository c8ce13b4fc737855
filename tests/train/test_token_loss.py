"""A loss of another kind is one function handed to the step: its gradient is that of its plain form
in float64, and the same on every layout; no layer knows of it.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsjax import params
from dsjax.cli.benches import equal_layouts
from dsjax.config.parallel import ParallelConfig
from dsjax.layers.backend import single
from dsjax.model import loss as losses
from dsjax.model import transformer
from dsjax.ops.token_loss import cross_entropy, logprobs_plain
from dsjax.runtime import backend as backends
from dsjax.train import sharding, step
from tests.agreement import compiled, double

MODEL = equal_layouts.MODEL
LAYOUTS = [
    (ParallelConfig(), 4),
    pytest.param(ParallelConfig(data=2, fsdp=2, expert=2), 2, marks=pytest.mark.exhaustive),
    pytest.param(ParallelConfig(pipe=2, schedule="dualpipe", data=2, expert=2), 4,
                 marks=pytest.mark.exhaustive),
    pytest.param(ParallelConfig(pipe=2, schedule="1f1b"), 2, marks=pytest.mark.exhaustive),
]


def clipped_ratio(logprobs, targets):
    """PPO's clipped ratio, as GRPO has it, with a penalty that is no line in the log-probability.
    """
    ratio = jnp.exp(logprobs - targets.extra["old_logprobs"])
    advantages = targets.extra["advantages"]
    gained = jnp.minimum(ratio * advantages, jnp.clip(ratio, 0.8, 1.2) * advantages)
    return (0.01 * logprobs**2 - gained) * targets.weights


@functools.cache
def policy():
    return jax.jit(functools.partial(losses.token_logprobs, cfg=MODEL, backend=single()))


@functools.cache
def rows():
    """Packed rows as sampled by a policy that was a little another one, with advantages."""
    found = equal_layouts.rows_of("packed")
    old = np.asarray(policy()(equal_layouts.start().params, found["tokens"], found["segments"]))
    rng = np.random.default_rng(2)
    shift = rng.normal(0, 0.3, old.shape).astype(np.float32)
    advantages = rng.normal(0, 1, old.shape).astype(np.float32)
    return found | {"old_logprobs": old + shift, "advantages": advantages}


@functools.cache
def gradient(layout, microbatches):
    """Loss and gradient by the step; its first moment is the gradient, as beta1 is 0."""
    run = equal_layouts.configured(layout, microbatches)
    mesh = sharding.open_mesh(run)
    backend = backends.for_run(run, mesh)
    take = sharding.compile_step(run, backend, mesh, clipped_ratio)
    where = None if mesh is None else sharding.state_shardings(run, mesh)
    state, metrics = take(jax.device_put(equal_layouts.start(), where),
                          sharding.put_rows(rows(), mesh))
    return jax.device_get((metrics.loss, metrics.next_token, state.opt.mu))


@functools.cache
def plain():
    """In float64: the loss of pre-training with its next-token part exchanged, all logits at once.
    """
    run = equal_layouts.RUN

    def f(p, batch):
        objective = step.objective_of(run, batch, jnp.int32(0))
        total, parts = losses.loss(p, batch, objective, MODEL, double())
        x = transformer.hidden(p, batch.tokens[:, :-1], batch.segments[:, :-1], MODEL, double()).x
        targets = losses.targets_of(batch, 1)
        found = logprobs_plain(x, p.head, targets.ids)
        other = clipped_ratio(found, targets) - cross_entropy(found, targets)
        return total + other.sum() / objective.totals.targets, parts.nll[0]

    with jax.enable_x64(True):
        p, batch = jax.tree.map(
            lambda a: jnp.asarray(a, jnp.float64 if a.dtype == np.float32 else None),
            (equal_layouts.start().params, losses.from_rows(rows())))
        (total, nll), grads = compiled(jax.value_and_grad(f, has_aux=True))(p, batch)
        nll = nll / losses.count(batch).targets
        return jax.tree.map(np.asarray, (total, nll, grads))


def test_the_clip_bites_on_either_side_and_not_everywhere():
    """Else the loss would be a line, and a slope read at a wrong place would not show."""
    batch = losses.from_rows(rows())
    targets = losses.targets_of(batch, 1)
    found = policy()(equal_layouts.start().params, batch.tokens, batch.segments)[:, 1:]
    ratio = np.exp(found - targets.extra["old_logprobs"])[np.asarray(targets.weights) > 0]
    for side in (ratio < 0.8, ratio > 1.2, np.abs(ratio - 1) < 0.2):
        assert 0.1 < side.mean() < 0.9


@pytest.mark.slow
@pytest.mark.parametrize(("layout", "microbatches"), LAYOUTS, ids=str)
def test_a_foreign_loss_has_its_plain_gradient_on_every_layout(layout, microbatches):
    total, nll, grads = gradient(layout, microbatches)
    wanted_total, wanted_nll, wanted = plain()
    assert total == pytest.approx(wanted_total, rel=equal_layouts.TOLERANCE)
    assert nll == pytest.approx(wanted_nll, rel=equal_layouts.TOLERANCE)
    named = dict(params.paths(wanted))
    for name, g in params.paths(grads):
        scale = np.abs(named[name]).max()
        # float32 against float64 through three layers: some hundred roundings of the largest number
        np.testing.assert_allclose(g, named[name], rtol=0, atol=3e-5 * scale, err_msg=name)


def test_what_a_loss_reads_of_a_token_stays_with_that_token():
    """At every distance, where documents end too."""
    batch = losses.from_rows(rows() | {"own": rows()["tokens"].astype(np.float32)})
    for ahead in (1, 2):
        targets = losses.targets_of(batch, ahead)
        inside = np.asarray(targets.weights) > 0
        np.testing.assert_array_equal(np.asarray(targets.extra["own"])[inside],
                                      np.asarray(targets.ids)[inside])
