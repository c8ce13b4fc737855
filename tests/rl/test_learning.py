"""From problems through rewards to a gradient: a table of logits learns its answers, and a flipped
sign anywhere would unlearn them.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsjax.ops import token_loss as chunks
from dsjax.rl.objective import advantage, loss, weights
from dsjax.rl.objective.loss import Objective
from dsjax.rl.rewards import rules
from dsjax.rl.tasks import digits
from dsjax.rl.tasks.task import problems

PROMPTS, SAMPLES, STEPS, RATE = 4, 16, 40, 4.0
GROUPS = np.repeat(np.arange(PROMPTS, dtype=np.int32), SAMPLES)


@pytest.mark.parametrize("relative", [advantage.group_relative, advantage.group_centered])
def test_a_table_of_logits_learns_the_answers(relative):
    """Right by chance .1 at first; after 40 updates of 16 samples a prompt above .8 on each."""
    asked = list(itertools.islice(problems(digits.SUM, 3, "train", 5), PROMPTS))
    right = np.array([int(one.answer) for one in asked])
    cfg = Objective(0.2, 0.3, kl_weight=0.001)
    head = jnp.eye(10)

    @jax.jit
    def update(table, reference, ids, rewards):
        x = table[GROUPS][:, None]
        old, known = (chunks.logprobs_plain(a, head, ids) for a in (x, reference[GROUPS][:, None]))
        same = advantage.constant_groups(rewards, GROUPS)
        mask = weights.counted(jnp.ones(ids.shape, bool), jnp.zeros_like(same), same)
        given = loss.targets(ids, weights.token_mean(mask), old=old, reference=known,
                             advantages=relative(rewards, GROUPS))

        def value(table):
            x = table[GROUPS][:, None]
            return chunks.summed_loss(x, head, given, loss.token_loss(cfg), 1,
                                      jnp.dtype("float32")).loss
        return table - RATE * jax.grad(value)(table)

    rng = np.random.default_rng(0)
    table = reference = jnp.zeros((PROMPTS, 10))
    for _ in range(STEPS):
        chances = np.asarray(jax.nn.softmax(table[GROUPS]), np.float64)
        ids = (chances.cumsum(axis=1) < rng.random((len(GROUPS), 1))).sum(axis=1).clip(max=9)
        rows = [(asked[group].prompt, f":{digit}", asked[group].reference)
                for group, digit in zip(GROUPS, ids)]
        rewards = [one.total for one in rules.score_all({"colon": 1.0}, rows)]
        table = update(table, reference, jnp.asarray(ids[:, None], jnp.int32), jnp.asarray(rewards))
    learned = np.asarray(jax.nn.softmax(table))[np.arange(PROMPTS), right]
    assert (learned > 0.8).all(), learned
