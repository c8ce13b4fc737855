"""Chunked losses of tokens are the plain form with its gradients, at any length, whatever the loss
is, and all logits are never there at once.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsjax.ops.token_loss import Targets, cross_entropy, logprobs, logprobs_plain, summed_loss
from tests.agreement import close, compiled, pulled, shapes_within
from tests.reference import losses

B, D, V = 2, 5, 13
LENGTHS = [(3, 128), (7, 3), (8, 4)]
F64 = jnp.dtype("float64")


def inputs(length, seed=0):
    rng = np.random.default_rng(seed)
    x, head = rng.standard_normal((B, length, D)), rng.standard_normal((D, V))
    ids = rng.integers(0, V, (B, length), dtype=np.int32)
    weights = rng.choice([0.0, 0.5, 2.0], (B, length))
    return x, head, Targets(ids, weights, {"old": rng.standard_normal((B, length)) - 2})


def clipped_ratio(logprobs, targets):
    """A foreign loss: neither linear in the log-probability nor smooth."""
    ratio = jnp.exp(logprobs - targets.extra["old"])
    return -jnp.minimum(ratio, jnp.clip(ratio, 0.8, 1.2)) * targets.weights


@pytest.mark.parametrize("token_loss", [cross_entropy, clipped_ratio])
@pytest.mark.parametrize(("length", "chunk"), LENGTHS)
def test_sums_and_gradients_agree_with_the_plain_form_and_the_reference(length, chunk, token_loss):
    x, head, targets = inputs(length)

    def chunked(x, head):
        sums = summed_loss(x, head, targets, token_loss, chunk, F64)
        return sums.loss, sums.nll, sums.correct

    def plain(x, head):
        return token_loss(logprobs_plain(x, head, jnp.asarray(targets.ids)), targets).sum()

    with jax.enable_x64(True):
        (loss, nll, correct), gradients = pulled(chunked, (0.7, 0.0, 0.0), x, head)
        plain_loss, plain_gradients = pulled(plain, 0.7, x, head)
        alone = compiled(chunked)(x, head)
    logits = x @ head
    close(loss, plain_loss, 1e-13)
    close(nll, reference_loss(logits, targets), 1e-13)
    close(correct, (targets.weights * (logits.argmax(-1) == targets.ids)).sum(), 1e-13)
    close(alone, (loss, nll, correct), 1e-13)
    for actual, twin in zip(gradients, plain_gradients):
        assert np.abs(twin).max() > 1e-3
        close(actual, twin, 1e-12)


def reference_loss(logits, targets):
    return sum(
        targets.weights[b, t] * losses.negative_log_likelihood(logits[b, t], targets.ids[b, t])
        for b, t in np.ndindex(*targets.ids.shape)
    )


@pytest.mark.parametrize(("length", "chunk"), LENGTHS)
def test_logprobs_of_each_token_are_the_plain_ones_and_have_their_gradients(length, chunk):
    """So that a loss of whole rows can be made of them."""
    x, head, targets = inputs(length)
    ids = jnp.asarray(targets.ids)

    def chunked(x, head):
        return logprobs(x, head, ids, chunk, F64)[0]

    with jax.enable_x64(True):
        found, gradients = pulled(chunked, targets.weights, x, head)
        plain, plain_gradients = pulled(lambda x, head: logprobs_plain(x, head, ids),
                                        targets.weights, x, head)
        likeliest = compiled(lambda: logprobs(x, head, ids, chunk, F64)[1])()
    close(found, plain, 1e-13)
    np.testing.assert_array_equal(likeliest, (x @ head).argmax(-1))
    for actual, twin in zip(gradients, plain_gradients):
        close(actual, twin, 1e-12)


def test_weight_zero_positions_change_nothing_whatever_they_hold():
    x, head, targets = jax.tree.map(jnp.asarray, inputs(6))
    x, head, weights = (a.astype(jnp.float32) for a in (x, head, targets.weights))
    weights = weights.at[:, 4:].set(0.0)

    def f(x, head, ids):
        return summed_loss(x, head, Targets(ids, weights), cross_entropy, 4,
                           jnp.dtype(jnp.float32)).loss

    both = compiled(jax.value_and_grad(f, (0, 1)))
    one = both(x, head, targets.ids)
    other = both(x.at[:, 4:].set(9.0), head, targets.ids.at[:, 4:].set(0))
    jax.tree.map(np.testing.assert_array_equal, one, other)
    assert not np.any(one[1][0][:, 4:])


def test_bfloat16_operands_round_once_and_sum_in_float32():
    x, head, targets = inputs(7)
    low = jnp.dtype(jnp.bfloat16)
    x16, head16 = (np.asarray(jnp.asarray(a, low), np.float64) for a in (x, head))
    single = jax.tree.map(jnp.asarray, targets.replace(weights=targets.weights.astype(np.float32)))
    found = summed_loss(jnp.asarray(x, jnp.float32), jnp.asarray(head, jnp.float32), single,
                        cross_entropy, 4, low)
    exact = reference_loss(x16 @ head16, targets)
    # Five float32 additions a logit of size 10 and 14 positions of weight 2: 14 * 2 * 70 * 2^-24.
    assert float(found.loss) == pytest.approx(exact, abs=14 * 2 * 70 * 2**-24)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_no_array_of_all_logits_is_ever_made(dtype):
    x, head = jnp.zeros((B, 96, D)), jnp.zeros((D, 1000))
    targets = Targets(jnp.zeros((B, 96), jnp.int32), jnp.ones((B, 96)), {"old": jnp.ones((B, 96))})

    def fused(x, head):
        return summed_loss(x, head, targets, clipped_ratio, 8, jnp.dtype(dtype)).loss

    def apart(x, head):
        found, _ = logprobs(x, head, targets.ids, 8, jnp.dtype(dtype))
        return clipped_ratio(found, targets).sum()

    for f in (fused, apart):
        found = shapes_within(jax.make_jaxpr(jax.value_and_grad(f, (0, 1)))(x, head).jaxpr)
        sizes = [int(np.prod(shape)) for shape, _ in found if 1000 in shape]
        assert (B * 8, 1000) in {shape for shape, _ in found}  # the walk sees inside the scan
        assert max(sizes) <= max(B * 8 * 1000, D * 1000)
