"""The chunked loss is the plain one with its gradients, at any length, never all logits at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsjax.ops.cross_entropy import cross_entropy, cross_entropy_plain
from tests.agreement import close, compiled, pulled, shapes_within
from tests.reference import losses

B, D, V = 2, 5, 13


def inputs(length, seed=0):
    rng = np.random.default_rng(seed)
    x, head = rng.standard_normal((B, length, D)), rng.standard_normal((D, V))
    targets = rng.integers(0, V, (B, length), dtype=np.int32)
    return x, head, targets, rng.choice([0.0, 0.5, 2.0], (B, length))


@pytest.mark.parametrize(("length", "chunk"), [(3, 128), (7, 3), (8, 4)])
def test_nats_hits_and_gradients_agree_with_the_plain_form_and_the_reference(length, chunk):
    x, head, targets, weights = inputs(length)

    def chunked(x, head):
        return cross_entropy(x, head, targets, weights, chunk, jnp.dtype(jnp.float64))

    def plain(x, head):
        return cross_entropy_plain(x, head, jnp.asarray(targets), jnp.asarray(weights))

    with jax.enable_x64(True):
        (nats, hits), gradients = pulled(chunked, (0.7, 0.3), x, head)  # hits have no gradient
        plain_nats, plain_gradients = pulled(plain, 0.7, x, head)
        alone = compiled(chunked)(x, head)
    logits = x @ head
    expected = plain_loss(logits, targets, weights)
    close(nats, expected, 1e-13)
    close(plain_nats, expected, 1e-13)
    close(hits, (weights * (logits.argmax(-1) == targets)).sum(), 1e-13)
    close(alone, (nats, hits), 1e-13)
    for actual, reference in zip(gradients, plain_gradients):
        close(actual, reference, 1e-12)


def plain_loss(logits, targets, weights):
    return sum(
        weights[b, t] * losses.negative_log_likelihood(logits[b, t], targets[b, t])
        for b, t in np.ndindex(*targets.shape)
    )


def test_weight_zero_positions_change_nothing_whatever_they_hold():
    x, head, targets, weights = (jnp.asarray(a) for a in inputs(6))
    x, head, weights = (a.astype(jnp.float32) for a in (x, head, weights))
    weights = weights.at[:, 4:].set(0.0)

    def f(x, head, targets):
        return cross_entropy(x, head, targets, weights, 4, jnp.dtype(jnp.float32))[0]

    both = compiled(jax.value_and_grad(f, (0, 1)))
    one = both(x, head, targets)
    other = both(x.at[:, 4:].set(9.0), head, targets.at[:, 4:].set(0))
    jax.tree.map(np.testing.assert_array_equal, one, other)
    assert not np.any(one[1][0][:, 4:])


def test_bfloat16_operands_round_once_and_sum_in_float32():
    x, head, targets, weights = inputs(7)
    low = jnp.dtype(jnp.bfloat16)
    x16, head16 = (np.asarray(jnp.asarray(a, low), np.float64) for a in (x, head))
    nats, _ = cross_entropy(jnp.asarray(x, jnp.float32), jnp.asarray(head, jnp.float32),
                            jnp.asarray(targets), jnp.asarray(weights, jnp.float32), 4, low)
    exact = plain_loss(x16 @ head16, targets, weights)
    # Five float32 additions a logit of size 10 and 14 positions of weight 2: 14 * 2 * 70 * 2^-24.
    assert float(nats) == pytest.approx(exact, abs=14 * 2 * 70 * 2**-24)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_no_array_of_all_logits_is_ever_made(dtype):
    x, head = jnp.zeros((B, 96, D)), jnp.zeros((D, 1000))
    targets, weights = jnp.zeros((B, 96), jnp.int32), jnp.ones((B, 96))

    def f(x, head):
        return cross_entropy(x, head, targets, weights, 8, jnp.dtype(dtype))[0]

    found = shapes_within(jax.make_jaxpr(jax.value_and_grad(f, (0, 1)))(x, head).jaxpr)
    sizes = [int(np.prod(shape)) for shape, _ in found if 1000 in shape]
    assert (B * 8, 1000) in {shape for shape, _ in found}  # the walk sees inside the scan
    assert max(sizes) <= max(B * 8 * 1000, D * 1000)
