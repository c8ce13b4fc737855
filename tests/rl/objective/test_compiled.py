"""Compiled, in float32, every equation is the one of float64 to rounding, and stays float32."""

import jax
import jax.numpy as jnp
import numpy as np

from dsjax.infer.sample import Sampling, sampling_params
from dsjax.rl.objective import advantage, kl, loss, mismatch, ratio, support, weights
from dsjax.rl.objective.loss import Objective
from tests.rl.objective.arrays import batch

SAMPLING = Sampling(temperature=0.7, top_p=0.8)


def everything(new, old, reference, mask, rewards, groups, logits):
    """Two updates' worth of arrays, by name."""
    ids = jnp.zeros(mask.shape, jnp.int32)
    advantages = advantage.group_relative(rewards, groups, eps=1e-4)
    kept = weights.counted(mask, jnp.zeros(len(mask), bool),
                           advantage.constant_groups(rewards, groups))
    on_policy = mismatch.is_on_policy(new, old, advantages, mask, 0.1)
    factor = mismatch.token_weights(old, reference, 2.0) * on_policy.astype(old.dtype)[:, None]
    given = loss.targets(ids, weights.constant_length(kept, 9), old=old, advantages=advantages,
                         reference=reference, factor=factor,
                         sequence=ratio.sequence_ratio(new, old, mask))
    found = {
        "centered": advantage.group_centered(rewards, groups),
        "output": ratio.output_ratio(new, old, mask),
        "outputs": mismatch.sequence_weights(old, reference, mask, 2.0),
        "statistics": mismatch.statistics(old, reference, mask),
        "k3": weights.total(kl.k3(new, reference), weights.token_mean(mask)),
        "within": support.logprobs_within(
            logits, support.support(logits, sampling_params([SAMPLING] * len(logits))), ids[:, 0],
            0.7)}
    for level in ("token", "sequence"):
        f = loss.token_loss(Objective(0.2, 0.3, 0.05, "unbiased", level))
        found[level] = jax.value_and_grad(lambda x, f=f: f(x, given).sum())(new)
    return found


def test_float32_is_float64_to_rounding():
    new, old, _, mask = batch(21)
    logits = np.random.default_rng(3).standard_normal((5, 11))
    logits[np.arange(5), 0] += 2  # the token that is asked for is in its nucleus
    rewards, groups = np.array([1.0, 0, 1, 1, 0.5]), np.array([0, 0, 3, 3, 0])
    arrays = (new, old, batch(22)[1], mask, rewards, groups, logits)
    with jax.enable_x64(True):
        exact = jax.tree.map(np.asarray, jax.jit(everything)(*map(jnp.asarray, arrays)))
    single = [jnp.asarray(a, jnp.float32 if a.dtype == np.float64 else a.dtype.name.replace(
        "int64", "int32")) for a in arrays]
    found = jax.jit(everything)(*single)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(found)} == {"float32"}
    # Tens of roundings of 6e-8 in numbers of up to about ten.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=3e-5, atol=3e-6), found, exact)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(exact))
