"""The train step minimizes the sum of weights * token loss, whichever the aggregation, and follows
its gradient; what counts for nothing changes nothing.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsjax import params as trees
from dsjax.layers.backend import single
from dsjax.model import loss as losses
from dsjax.rl import update
from dsjax.rl.objective import loss
from dsjax.rl.rewards.rules import Scored
from dsjax.rl.rollout import Rollout
from dsjax.train import sharding
from tests.rl import small

B, T, PROMPT = 12, 31, 24
TOLERANCE = 3e-5  # float32 through three layers against float32 in another order


def made(rewards, is_truncated=(), seed=0):
    """A rollout of drawn tokens, as if an engine near the policy had sampled them."""
    rng = np.random.default_rng(seed)
    lengths = PROMPT + rng.integers(2, 8, B)
    at = np.arange(T)[None]
    real, mask = at < lengths[:, None], (at >= PROMPT) & (at < lengths[:, None])
    tokens = np.where(real, rng.integers(4, 260, (B, T)), 0).astype(np.int32)
    routes = np.broadcast_to(np.arange(2, dtype=np.int32), (B, 2, T, 2)).copy()
    cut = np.isin(np.arange(B), list(is_truncated))
    return Rollout(
        problems=(None,) * B, texts=("",) * B, tokens=tokens, mask=mask, real=real,
        engine=np.where(mask, -3.0, 0.0).astype(np.float32), routes=routes, is_truncated=cut,
        groups=np.repeat(np.arange(3, dtype=np.int32), 4),
        scored=tuple(Scored(float(r), {"colon": float(r)}, {}) for r in rewards), seconds=1.0)


REWARDS = [1, 0, 0, 1, 0, 0, 0, 0, 0, 1, 0.5, 0]  # the second group is constant
MADE = made(REWARDS, is_truncated=[1])


@functools.cache
def found():
    """The trainer's log-probabilities, as of a policy that has moved since: no ratio is 1."""
    score = update.compile_score(small.RUN, single(), None)
    known = update.known(score, small.params(), small.params(1), MADE, None)
    shift = np.random.default_rng(1).normal(0, 0.3, known.old.shape).astype(np.float32)
    return known, dataclasses.replace(known, old=np.where(MADE.mask, known.old + shift, 0.0))


def config(**fields):
    return dataclasses.replace(small.RL, clip_low=0.2, clip_high=0.3, **fields)


def first_moment(cfg, rollout, known, now):
    """Loss and gradient by the train step; its first moment is the gradient, as beta1 is 0."""
    run = dataclasses.replace(small.RUN, rl=cfg, optimizer=dataclasses.replace(
        small.RUN.optimizer, beta1=0.0, clip=1e6, moments="float32"))
    run = update.training_run(run)
    step = sharding.compile_step(run, single(), None, update.token_loss(cfg))
    copied = jax.tree.map(jnp.copy, small.params())
    rows = update.rows_of(rollout, known, now, cfg)
    state, m = step(sharding.begin(run, copied, None), sharding.put_rows(rows, None))
    return jax.device_get((m.loss, m.next_token, state.opt.mu))


def plain(cfg, known, now, share):
    """The same from the equations: all outputs at once, weights as the paper writes them."""
    rewards, groups = MADE.rewards.reshape(3, 4), MADE.groups
    centered = rewards - rewards.mean(1, keepdims=True)
    if cfg.advantage == "relative":
        deviation = rewards.std(1, ddof=1, keepdims=True)
        centered = centered / np.where(deviation > 0, deviation, 1)
    advantages = centered[groups, np.tile(np.arange(4), 3)][:, None]

    def f(p):
        logprobs = losses.token_logprobs(
            p, jnp.asarray(MADE.tokens), jnp.asarray(MADE.real, jnp.int32), small.MODEL, single(),
            jnp.moveaxis(jnp.asarray(MADE.routes), 1, 0))
        inner = loss.token_loss(loss.Objective(0.2, 0.3, 0.01, cfg.kl, cfg.ratio))
        extra = {"old": known.old, "advantages": np.broadcast_to(advantages, (B, T)),
                 "reference": known.reference}
        factor = {"none": 1.0, "token": np.minimum(np.exp(known.old - MADE.engine), 2.0)}
        extra["factor"] = np.broadcast_to(factor[cfg.correction], (B, T))
        if cfg.ratio == "sequence":
            mean = ((now - known.old) * MADE.mask).sum(1) / MADE.mask.sum(1)
            extra["sequence"] = np.broadcast_to(np.exp(mean)[:, None], (B, T))
        given = {name: jnp.asarray(a, jnp.float32) for name, a in extra.items()}
        return inner(logprobs, update.Targets(None, jnp.asarray(share, jnp.float32), given)).sum()

    return jax.device_get(jax.jit(jax.value_and_grad(f))(small.params()))


COUNTS = MADE.mask & ~np.isin(np.arange(B), [1, 4, 5, 6, 7])[:, None]
SHARES = {
    "token": COUNTS / COUNTS.sum(),
    "sequence": COUNTS / np.maximum(COUNTS.sum(1, keepdims=True), 1) / 7,
    "constant": COUNTS / (7 * small.RL.max_new_tokens)}


@pytest.mark.parametrize("fields", [
    pytest.param({"aggregation": "sequence"}, marks=pytest.mark.exhaustive),
    {"aggregation": "constant", "advantage": "centered", "kl": "unbiased"},
    pytest.param({"aggregation": "token", "ratio": "sequence", "correction": "token"},
                 marks=pytest.mark.exhaustive),
], ids=["r1", "dr_grpo", "gspo"])
def test_the_train_step_follows_the_equations(fields):
    cfg, (now, known) = config(**fields), found()
    total, entropy, grads = first_moment(cfg, MADE, known, now.old)
    wanted, wanted_grads = plain(cfg, known, now.old, SHARES[cfg.aggregation])
    assert total == pytest.approx(wanted, rel=TOLERANCE, abs=1e-6)
    assert entropy == pytest.approx(-now.old[COUNTS].mean(), rel=TOLERANCE)
    named = dict(trees.paths(wanted_grads))
    for name, g in trees.paths(grads):
        scale = np.abs(named[name]).max()
        assert scale > 0
        np.testing.assert_allclose(g, named[name], rtol=0, atol=TOLERANCE * scale, err_msg=name)


def test_a_rollout_in_which_nothing_counts_changes_nothing():
    """All rewards alike; the first update of moments would move by any gradient at all."""
    known, _ = found()
    flat = made([1.0] * B)
    total, _, grads = first_moment(config(), flat, known, known.old)
    assert total == 0
    assert all((np.asarray(g) == 0).all() for g in jax.tree.leaves(grads))


@pytest.mark.parametrize("fields", [{}, {"kl_weight": 0.0, "ratio": "sequence"}], ids=str)
def test_rows_have_what_is_said_of_them(fields):
    """A step that is compiled ahead is given the same names."""
    known, _ = found()
    rows = update.rows_of(MADE, known, known.old, config(**fields))
    own = {"tokens", "segments", "weights", "routes"}
    assert rows.keys() == own | set(update.extra_of(config(**fields)))


def test_parts_of_a_rollout_are_whole_groups():
    known, _ = found()
    parts = list(update.parts(MADE, known, 3))
    assert [part.groups.tolist() for part, _ in parts] == [[0] * 4, [1] * 4, [2] * 4]
    np.testing.assert_array_equal(np.concatenate([one.old for _, one in parts]), known.old)
    np.testing.assert_array_equal(np.concatenate([part.routes for part, _ in parts]), MADE.routes)
    assert [part.rewards.tolist() for part, _ in parts] == [
        [1, 0, 0, 1], [0, 0, 0, 0], [0, 1, 0.5, 0]]
    (alone, _), = update.parts(MADE, known, 1)
    assert alone is MADE


def test_clipped_tokens_are_those_without_a_slope():
    now, known = found()
    ratio, gains = np.exp(now.old - known.old), np.array(REWARDS).reshape(3, 4)
    sign = np.sign(gains - gains.mean(1, keepdims=True)).reshape(-1)[:, None]
    is_clipped = (ratio > 1.3) & (sign > 0) | (ratio < 0.8) & (sign < 0)
    share = update.clipped(MADE, known, now.old, config())
    assert share == pytest.approx(is_clipped[MADE.mask].mean())
    assert 0.05 < share < 0.6
    assert update.clipped(MADE, now, now.old, config()) == 0
