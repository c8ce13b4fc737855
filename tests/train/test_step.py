"""One optimizer step is the same however its batch is cut; only the rule moves the bias."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsjax.layers.backend import single
from dsjax.model import loss as losses
from dsjax.model.loss import Batch
from dsjax.numerics import precision
from dsjax.train import state as states
from dsjax.train import step as steps
from tests.train.small_run import MODEL, small_run

ROWS, LENGTH = 8, 15


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    run = small_run(tmp_path_factory.mktemp("run"), tmp_path_factory.mktemp("text"))
    return dataclasses.replace(run, train=dataclasses.replace(run.train, batch_size=ROWS))


@pytest.fixture(scope="module")
def batch():
    """Rows of unequal length: documents end inside rows, padding follows, some tokens weigh 0."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, MODEL.vocab, (ROWS, LENGTH + 1)).astype(np.int32)
    segments = np.ones((ROWS, LENGTH + 1), np.int32)
    segments[1, 7:] = 2
    segments[2, 4:] = 0
    segments[5, 2:] = 0
    weights = rng.integers(0, 2, (ROWS, LENGTH + 1)).astype(np.float32)
    return Batch(jnp.asarray(tokens), jnp.asarray(segments), jnp.asarray(weights))


def take(run, microbatches, batch, backend=None):
    run = dataclasses.replace(
        run, train=dataclasses.replace(run.train, microbatches=microbatches))
    start = states.init(run, jax.random.key(0))
    step = jax.jit(steps.make_train_step(run, backend or single()))
    return start, *step(start, batch)


@pytest.fixture(scope="module")
def whole(run, batch):
    return take(run, 1, batch)


@pytest.mark.parametrize("microbatches", [
    pytest.param(2, marks=pytest.mark.exhaustive), 4])
def test_microbatches_change_nothing(run, batch, whole, microbatches):
    _, state, metrics = take(run, microbatches, batch)
    _, wanted_state, wanted = whole
    # sums of the same float32 terms in another order: a few rounding errors of the largest
    for got, exact in zip(jax.tree.leaves(metrics), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(got, exact, rtol=2e-5, atol=1e-6)
    bias, wanted_bias = (s.params.moe.ffn.router.bias for s in (state, wanted_state))
    np.testing.assert_array_equal(bias, wanted_bias)


def test_gradients_of_microbatches_add_up(run, batch):
    params = states.init(run, jax.random.key(0)).params
    objective = steps.objective_of(run, batch, jnp.int32(0))

    def of(count):
        cut = dataclasses.replace(
            run, train=dataclasses.replace(run.train, microbatches=count))
        return jax.jit(lambda p: steps.gradients(p, batch, objective, cut, single())[0])(params)

    one, four = of(1), of(4)
    scale = max(float(jnp.abs(g).max()) for g in jax.tree.leaves(one))
    # rounding of sums over at most 8 x 15 positions: a few eps times the largest gradient
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(four), strict=True):
        np.testing.assert_allclose(a, b, atol=50 * np.finfo(np.float32).eps * scale)


def test_only_the_balance_rule_moves_the_bias_and_by_its_speed(run, whole):
    start, state, metrics = whole
    moved = state.params.moe.ffn.router.bias - start.params.moe.ffn.router.bias
    expected = losses.bias_step(metrics.loads[:1], run.loss.bias_speed)
    np.testing.assert_allclose(moved, expected, rtol=1e-6)
    assert float(jnp.abs(moved).max()) == pytest.approx(run.loss.bias_speed)


def test_a_non_finite_gradient_skips_the_step_and_is_counted(run, batch):
    start = states.init(run, jax.random.key(0))
    broken = start.replace(params=start.params.replace(norm=start.params.norm.at[0].set(jnp.inf)))
    step = jax.jit(steps.make_train_step(run, single()))
    after, metrics = step(broken, batch)
    jax.tree.map(np.testing.assert_array_equal, after.params, broken.params)
    jax.tree.map(np.testing.assert_array_equal, after.opt, broken.opt)
    assert (int(after.skipped), int(after.skipped_in_row), int(after.step)) == (1, 1, 1)
    healed, _ = step(after.replace(params=start.params), batch)
    assert (int(healed.skipped), int(healed.skipped_in_row), int(healed.step)) == (1, 0, 2)
    assert int(metrics.skipped) == 1


def test_low_precision_weights_are_held_once_and_gradients_reach_the_masters(run, batch):
    params = states.init(run, jax.random.key(0)).params
    grads, exact = (
        jax.jit(functools.partial(steps.gradients, run=run, backend=backend))(
            params, batch, steps.objective_of(run, batch, jnp.int32(0)))[0]
        for backend in (single(precision.BF16), single()))
    for low, high in zip(jax.tree.leaves(grads), jax.tree.leaves(exact), strict=True):
        assert low.dtype == jnp.float32
        size = float(jnp.linalg.norm(high))
        if size > 1e-6:  # bfloat16 operands: 2^-9 each, through a dozen products
            assert float(jnp.linalg.norm(low - high)) < 0.1 * size


def test_the_step_is_compiled_again_only_where_the_rows_length_changes(run, batch):
    start = states.init(run, jax.random.key(0))
    step = jax.jit(steps.make_train_step(run, single()))
    short = jax.tree.map(lambda a: a[:, :8], batch)
    for part in (short, short, batch, batch):
        step(start, part)
    assert step._cache_size() == 2
