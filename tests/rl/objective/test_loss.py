"""One token loss is the sum of the equations, in any chunk, and masked tokens have no part."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st

from dsjax.errors import UserError
from dsjax.ops import token_loss as chunks
from dsjax.rl.objective import advantage, kl, loss, mismatch, ratio, weights
from dsjax.rl.objective.loss import Objective
from tests.rl.objective.arrays import agrees_with_differences, batch

IDS = np.zeros((5, 7), np.int32)
CLIPPED = {"clip_low": 0.2, "clip_high": 0.3, "kl_weight": 0.05}
REFERENCE = batch(9)[1]


@pytest.fixture(autouse=True)
def in_float64():
    with jax.enable_x64(True):
        yield


def known(old, advantages, reference=REFERENCE):
    return {"old": jnp.asarray(old), "advantages": jnp.asarray(advantages),
            "reference": jnp.asarray(reference)}


def summed(cfg, made, **given):
    given = {name: jnp.asarray(values) for name, values in given.items()}

    def f(x):
        return loss.token_loss(cfg)(x, loss.targets(IDS, jnp.asarray(made), **given)).sum()
    return f


def test_by_hand():
    """One output of two tokens, A = 2, beta 0.1, weights 1/2; ratios 2 and 1/2, clip [0.8, 1.3].

    Surrogates: min(4, 2.6) = 2.6 and min(1, 1.6) = 1. pi_ref/pi is 1 and 2: k3 0 and 0.3068528.
    Loss (-2.6 + 0)/2 + (-1 + 0.03068528)/2 = -1.7846574; with a factor of 3 on the second
    surrogate -2.7846574; with V3.2's KL its ratio halves 0.03068528: -1.7923287.
    """
    old = np.log([[0.2, 0.4]])
    now = np.log([[0.4, 0.2]])
    reference = np.log([[0.4, 0.4]])
    ids, made = np.zeros((1, 2), np.int32), jnp.full((1, 2), 0.5)
    given = known(old, [2.0], reference)

    def value(kind="k3", **more):
        cfg = Objective(0.2, 0.3, 0.1, kind)
        return loss.token_loss(cfg)(jnp.asarray(now),
                                    loss.targets(ids, made, **given, **more)).sum()

    np.testing.assert_allclose(value(), -1.7846574, atol=1e-7)
    np.testing.assert_allclose(value(factor=jnp.asarray([[1.0, 3.0]])), -2.7846574, atol=1e-7)
    np.testing.assert_allclose(value("unbiased"), -1.7923287, atol=1e-7)


@pytest.mark.parametrize("kind", ["k3", "unbiased"])
def test_it_is_the_sum_of_its_parts_with_the_gradient_of_finite_differences(kind):
    new, old, advantages, mask = batch(7)
    made = weights.sequence_mean(mask)
    factor = mismatch.token_weights(jnp.asarray(old), jnp.asarray(batch(8)[1]), 2.0)
    f = summed(Objective(**CLIPPED, kl=kind), made, factor=factor, **known(old, advantages))
    gain = ratio.clipped_surrogate(ratio.token_ratio(new, old), advantages, 0.2, 0.3) * factor
    away = kl.k3(new, REFERENCE) if kind == "k3" else kl.unbiased(new, REFERENCE, old)
    np.testing.assert_allclose(f(new), weights.total(-gain + 0.05 * away, made), rtol=1e-13)
    agrees_with_differences(f, new)


def test_the_sequence_ratio_gives_the_gradient_of_the_whole_output():
    new, old, advantages, mask = batch(10)
    made = weights.sequence_mean(mask)
    sequence = ratio.sequence_ratio(new, old, mask)
    cfg = Objective(0.2, 0.3, 0.0, ratio="sequence")
    f = summed(cfg, made, old=old, advantages=advantages, sequence=sequence)

    def whole(x):
        rho = ratio.sequence_ratio(x, old, mask)
        return -ratio.clipped_surrogate(rho, advantages, 0.2, 0.3).mean()

    np.testing.assert_allclose(f(new), whole(new), rtol=1e-13)
    np.testing.assert_allclose(jax.grad(f)(new), jax.grad(whole)(new), rtol=1e-12)


def test_at_the_old_policy_it_is_the_plain_policy_gradient():
    _, old, advantages, mask = batch(11)
    made = weights.token_mean(mask)
    f = summed(Objective(0.2, 0.3, 0.0), made, old=old, advantages=advantages)
    np.testing.assert_allclose(jax.grad(f)(old), -advantages * made, rtol=1e-13)


@pytest.mark.parametrize("kind", ["k3", "unbiased"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, -1e4])
def test_what_stands_at_masked_tokens_changes_no_value_and_no_gradient(bad, kind):
    new, old, advantages, mask = batch(12)
    made = weights.token_mean(mask)
    cfg = Objective(**CLIPPED, kl=kind)

    def pair(fill):
        arrays = [np.where(mask, a, fill) for a in (new, old, REFERENCE, np.ones_like(new))]
        by_token = np.where(mask, advantages, fill)
        f = summed(cfg, made, factor=arrays[3], **known(arrays[1], by_token, arrays[2]))
        return jax.value_and_grad(f)(jnp.asarray(arrays[0]))

    (clean, slope), (value, gradient) = pair(-1.0), pair(bad)
    assert value == clean
    np.testing.assert_array_equal(gradient, slope)
    assert (gradient[~mask] == 0).all()


@functools.cache
def compiled(kind, level):
    """Value and gradient of an objective at arrays, once compiled for all that is drawn."""
    cfg = Objective(**CLIPPED, kl=kind, ratio=level)

    @jax.jit
    def f(new, made, known):
        each = loss.token_loss(cfg)(new, loss.targets(IDS, made, **known))
        return each.sum()
    return jax.value_and_grad(f)


@drawn(st.lists(st.integers(0, 7), min_size=5, max_size=5), st.integers(0, 99),
       st.sampled_from([np.nan, np.inf, -np.inf, 88.0, -1e30]),
       st.sampled_from(["k3", "unbiased"]), st.sampled_from(["token", "sequence"]))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_any_mask_silences_anything(lengths, seed, bad, kind, level):
    """And at the old policy, which is the reference, what is left is the plain policy gradient."""
    with jax.enable_x64(True):
        _, old, advantages, _ = batch(seed)
        mask = np.arange(7)[None] < np.array(lengths)[:, None]
        made = weights.sequence_mean(mask)
        filled = jnp.asarray(np.where(mask, old, bad))
        arrays = {"old": filled, "reference": filled, "advantages": jnp.asarray(
            np.where(mask, advantages, bad)), "sequence": jnp.where(mask, 1.0, bad),
            "factor": jnp.where(mask, 1.0, bad)}
        value, gradient = compiled(kind, level)(filled, made, arrays)
        np.testing.assert_allclose(gradient, -advantages * np.asarray(made), rtol=1e-12)
        np.testing.assert_allclose(value, -(advantages * np.asarray(made)).sum(), atol=1e-12)


def test_left_out_outputs_have_no_surrogate_no_kl_and_no_place_in_the_mean():
    """Loss and gradient are those of a batch that never had them."""
    new, old, _, mask = batch(13)
    rewards, groups = np.array([1.0, 1, 0, 1, 0]), np.array([0, 0, 1, 1, 1])
    cut = np.array([0, 0, 0, 1, 0], bool)
    advantages = advantage.group_relative(rewards, groups)
    same = advantage.constant_groups(rewards, groups)
    kept, left = np.array([2, 4]), np.array([0, 1, 3])
    for made in (weights.token_mean, weights.sequence_mean,
                 lambda mask: weights.constant_length(mask, 7)):
        f = summed(Objective(**CLIPPED), made(weights.counted(mask, cut, same)),
                   **known(old, advantages))
        value, gradient = jax.value_and_grad(f)(new)
        few = loss.targets(IDS[kept], made(mask[kept]),
                           **known(old[kept], advantages[kept], REFERENCE[kept]))
        alone = loss.token_loss(Objective(**CLIPPED))(jnp.asarray(new[kept]), few).sum()
        np.testing.assert_allclose(value, alone, rtol=1e-13)
        assert (gradient[left] == 0).all()
        assert (np.asarray(gradient)[kept] != 0).any(axis=-1).all()


def test_any_cut_of_the_batch_sums_to_the_same():
    new, old, advantages, mask = batch(14)
    whole = loss.targets(IDS, weights.token_mean(mask), **known(old, advantages))
    f = loss.token_loss(Objective(**CLIPPED))
    parts = [f(jnp.asarray(new[rows]), jax.tree.map(lambda a, rows=rows: a[rows], whole)).sum()
             for rows in (slice(0, 2), slice(2, 3), slice(3, 5))]
    np.testing.assert_allclose(sum(parts), f(jnp.asarray(new), whole).sum(), rtol=1e-14)


def test_through_the_head_in_chunks_it_is_the_plain_form():
    """The seam to training: the gradient of weights, not of log-probabilities."""
    rng = np.random.default_rng(15)
    x, head = jnp.asarray(rng.standard_normal((5, 7, 3))), jnp.asarray(rng.standard_normal((3, 9)))
    _, old, advantages, mask = batch(15)
    ids = rng.integers(0, 9, (5, 7), dtype=np.int32)
    given = loss.targets(ids, weights.token_mean(mask), **known(old, advantages))
    f = loss.token_loss(Objective(**CLIPPED))

    def chunked(x, head):
        return chunks.summed_loss(x, head, given, f, 3, jnp.dtype("float64")).loss

    def plain(x, head):
        return f(chunks.logprobs_plain(x, head, ids), given).sum()

    found, expected = (jax.jit(jax.value_and_grad(g, (0, 1)))(x, head) for g in (chunked, plain))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-14), found,
                 expected)


def test_what_makes_no_loss_is_refused():
    with pytest.raises(UserError, match=r"clip_low=-0\.1.*from 0 on"):
        Objective(clip_low=-0.1)
    with pytest.raises(UserError, match=r"kl_weight=nan"):
        Objective(kl_weight=float("nan"))
    with pytest.raises(UserError, match=r"'k2' is unknown; choose kl"):
        Objective(kl="k2")
    given = loss.targets(IDS, jnp.ones((5, 7)), old=REFERENCE, advantages=jnp.ones(5))
    with pytest.raises(UserError, match="reads reference"):
        loss.token_loss(Objective())(REFERENCE, given)
