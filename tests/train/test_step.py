"""One optimizer step is the same however its batch is cut; only the rule moves the bias."""

import dataclasses

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
    return dataclasses.replace(
        run, train=dataclasses.replace(run.train, batch_size=ROWS),
        optimizer=dataclasses.replace(run.optimizer, moments="float32"))


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
def step(run):
    """The step of whole batches in float32; compiled once for all tests."""
    return jax.jit(steps.make_train_step(run, single()))


@pytest.fixture(scope="module")
def whole(run, batch, step):
    start = states.init(run, jax.random.key(0))
    return start, *step(start, batch)


def gradients(state):
    """Gradients of the first step, clipped alike, as the first moment kept them."""
    return [np.asarray(g) for g in jax.tree.leaves(state.opt.mu)]


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
    grads, exact = gradients(state), gradients(wanted_state)
    scale = max(float(np.abs(g).max()) for g in exact)
    assert scale > 0
    # rounding of sums over at most 8 x 15 positions: a few eps times the largest gradient
    for a, b in zip(grads, exact, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-7, atol=50 * np.finfo(np.float32).eps * scale)


def test_only_the_balance_rule_moves_the_bias_and_by_its_speed(run, whole):
    start, state, metrics = whole
    moved = state.params.moe.ffn.router.bias - start.params.moe.ffn.router.bias
    expected = losses.bias_step(metrics.loads[:1], run.loss.bias_speed)
    np.testing.assert_allclose(moved, expected, rtol=1e-6)
    assert float(jnp.abs(moved).max()) == pytest.approx(run.loss.bias_speed)


def test_a_non_finite_gradient_skips_the_step_and_is_counted(run, batch, step):
    start = states.init(run, jax.random.key(0))
    broken = start.replace(params=start.params.replace(norm=start.params.norm.at[0].set(jnp.inf)))
    after, metrics = step(broken, batch)
    jax.tree.map(np.testing.assert_array_equal, after.params, broken.params)
    jax.tree.map(np.testing.assert_array_equal, after.opt, broken.opt)
    assert (int(after.skipped), int(after.skipped_in_row), int(after.step)) == (1, 1, 1)
    healed, _ = step(after.replace(params=start.params), batch)
    assert (int(healed.skipped), int(healed.skipped_in_row), int(healed.step)) == (1, 0, 2)
    assert int(metrics.skipped) == 1


def test_low_precision_weights_are_held_once_and_gradients_reach_the_masters(run, batch, whole):
    _, state, _ = take(run, 1, batch, single(precision.BF16))
    for low, high in zip(gradients(state), gradients(whole[1]), strict=True):
        assert low.dtype == np.float32
        size = float(np.linalg.norm(high))
        if size > 1e-7:  # bfloat16 operands: 2^-9 each, through a dozen products
            assert 0 < float(np.linalg.norm(low - high)) < 0.1 * size


def test_the_step_is_compiled_again_only_where_the_rows_length_changes(run, batch, step):
    start = states.init(run, jax.random.key(0))
    short = jax.tree.map(lambda a: np.asarray(a)[:, :8], batch)
    for part in (short, short, batch, batch):
        step(start, part)
    assert step._cache_size() == 2
