"""The smallest models are the reference's and learn in every leaf; what could not is refused.

A model learns in a leaf if the gradient of its loss there is not zero. Losses that have no part in
this (balance) are off, so that a router learns only from what its experts do.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsjax import params
from dsjax.config.loss import LossConfig
from dsjax.config.model import GQAConfig, MLAConfig, ModelConfig, MoEConfig, YarnConfig
from dsjax.config.run import OptimizerConfig
from dsjax.model import loss as losses
from dsjax.model import transformer
from dsjax.model.loss import Batch
from dsjax.ops import rope
from tests.agreement import as_reference, batch_arrays, close, compiled, double, draw
from tests.agreement import reference_config as reference
from tests.reference import attention, model

ALL = MoEConfig(experts=2, experts_per_token=2, expert_dim=1, shared_experts=0, has_bias=False)
ONE_OF = MoEConfig(experts=3, experts_per_token=1, expert_dim=3, groups=3, groups_per_token=3,
                   group_score="max", is_normalized=False, score="softmax",
                   capacity_factor=100.0, scale=1e-3)
LONE = MoEConfig(experts=1, experts_per_token=1, expert_dim=2, is_normalized=False, scale=1e3)
MLA = MLAConfig(heads=1, kv_rank=2, nope_dim=1, rope_dim=2, value_dim=1, q_rank=2)
SMALLEST = ModelConfig(vocab=2, d_model=2, layers=1, dense_layers=0, dense_dim=1, attention=MLA,
                       moe=ALL)
WIDER = dataclasses.replace(SMALLEST, vocab=5, d_model=6)
MODELS = {
    "the smallest, every expert for every token": SMALLEST,
    "one expert a token and a group": dataclasses.replace(WIDER, moe=ONE_OF),
    "one expert, in the prediction module alone": dataclasses.replace(
        WIDER, moe=LONE, dense_layers=1, mtp_depth=1),
    "one grouped head, dense": dataclasses.replace(
        WIDER, attention=GQAConfig(1, 1, 2), moe=None, dense_layers=1),
}


def wanted_nats(logits, tokens, weights, ahead):
    """Weighted -log p of token i+ahead at each position i, summed."""
    targets, weights = tokens[:, ahead:], weights[:, ahead:]
    total = 0.0
    for row, ids, weight in zip(logits, targets, weights):
        at = row[: len(ids)]
        logs = at - np.log(np.exp(at).sum(-1, keepdims=True))
        total -= (weight * logs[np.arange(len(ids)), ids]).sum()
    return total


@pytest.mark.parametrize("name", MODELS)
def test_a_degenerate_model_is_the_reference_and_learns_in_every_leaf(name):
    cfg = MODELS[name]
    tokens, segments, weights = batch_arrays(3, 8, cfg.vocab, 2)
    segments[:] = 1

    def f(p):
        batch = Batch(jnp.asarray(tokens), jnp.asarray(segments), jnp.asarray(weights))
        objective = losses.Objective(losses.count(batch), 0.3, LossConfig(balance=0))
        return losses.loss(p, batch, objective, cfg, double())

    with jax.enable_x64(True):
        p = draw(transformer.specs(cfg), 0)
        (_, parts), gradient = jax.tree.map(np.asarray,
                                            compiled(jax.value_and_grad(f, has_aux=True))(p))
    outputs = model.forward(as_reference(p), tokens[:, :-1], segments[:, :-1], reference(cfg))
    close(parts.nll[0], wanted_nats([o.logits for o in outputs], tokens, weights, 1), 1e-12)
    if cfg.mtp_depth:
        mtp = wanted_nats([o.mtp_logits[0] for o in outputs], tokens, weights, 2)
        close(parts.nll[1:], [mtp], 1e-12)
    free = dict(params.paths(params.trainable_mask(transformer.specs(cfg))))
    for leaf, g in params.paths(gradient):
        assert np.all(np.isfinite(g)), leaf
        assert not free[leaf] or np.abs(g).max() > 1e-9, leaf


MOE = MoEConfig(experts=4, experts_per_token=2, expert_dim=5)


@pytest.mark.parametrize(("good", "change", "said"), [
    (MOE, {"experts_per_token": 1}, r"never learns; use is_normalized=False, or two"),
    (LONE, {"score": "softmax"}, "experts=1 weighs 1 by softmax"),
    (LONE, {"score": "softmax", "is_normalized": True}, "experts_per_token=1"),
    (MOE, {"scale": 0.0}, r"scale=0.0 must be above 0; V3 uses 2.5"),
    (MOE, {"scale": -1.0}, r"scale=-1.0 must be above 0"),
    (MOE, {"scale": 1e9}, r"scale=1000000000.0 is not between 1e-06 and 1e\+06"),
    (MOE, {"capacity_factor": 1e-46}, "capacity_factor=1e-46 is not a number that float32 holds"),
    (MLA, {"kv_rank": 1}, "kv_rank=1 leaves RMSNorm one channel.*use at least 2"),
    (MLA, {"q_rank": 1}, "q_rank=1 leaves RMSNorm one channel"),
    (MLA, {"rope_dim": 0}, "rope_dim=0 must be at least 1"),
    (MLA, {"nope_dim": 0}, "nope_dim=0 must be at least 1"),
    (MLA, {"latent_norm_eps": 1e-30}, "latent_norm_eps=1e-30 is not between 1e-20 and 1"),
    (SMALLEST, {"d_model": 1}, "d_model=1 leaves RMSNorm one channel"),
    (SMALLEST, {"vocab": 1}, "vocab=1 leaves nothing to predict"),
    (SMALLEST, {"init_std": 0.0}, "init_std=0.0 must be above 0; V3 uses 0.006"),
    (SMALLEST, {"init_std": 1e9}, r"init_std=1000000000.0 is not between 1e-06 and 100"),
    (SMALLEST, {"init_std": 1e-46}, "init_std=1e-46 is not a number that float32 holds"),
    (SMALLEST, {"norm_eps": 1e9}, "norm_eps=1000000000.0 is not between 1e-20 and 1"),
    (WIDER, {"dense_layers": 1}, r"no block for experts; .*moe=None"),
    (YarnConfig(), {"mscale": -20.0}, "mscale=-20.0 is not above 0"),
    (YarnConfig(), {"beta_slow": 0.0}, "beta_slow=0.0 is not above 0"),
    (YarnConfig(), {"original_length": 6}, "original_length=6 is too short.*at least 7"),
    (YarnConfig(), {"factor": float("inf")}, "factor=inf is not a finite number"),
    (LossConfig(), {"bias_speed": 5.0}, "bias_speed=5.0 is not between 0 and 1"),
    (OptimizerConfig(), {"eps": 1e-30}, "eps=1e-30 is not between 1e-20 and 1; .*V4"),
    (OptimizerConfig(), {"clip": 1e-9}, r"clip=1e-09 is not between 1e-06 and 1e\+30"),
    (LossConfig(), {"mtp_weight": 1e30}, r"mtp_weight=1e\+30 is not between 0 and 1e\+06"),
])
def test_what_would_never_learn_or_be_no_number_is_refused_by_name(good, change, said):
    with pytest.raises(ValueError, match=said) as caught:
        dataclasses.replace(good, **change)
    assert "\n" not in str(caught.value)


HUGE = (2**31, 10**15, 10**30, 10**5000)


@pytest.mark.parametrize("size", HUGE, ids=["2^31", "10^15", "10^30", "10^5000"])
@pytest.mark.parametrize(("good", "field"), [
    (SMALLEST, "vocab"), (SMALLEST, "d_model"), (SMALLEST, "layers"), (SMALLEST, "dense_dim"),
    (SMALLEST, "mtp_depth"), (MOE, "experts"), (MOE, "expert_dim"), (MOE, "shared_experts"),
    (MOE, "groups"), (MLA, "heads"), (MLA, "kv_rank"), (YarnConfig(), "original_length")])
def test_a_size_that_no_machine_has_is_refused_at_once(good, field, size):
    said = f"{field}=.* (more than any machine has|more than 63 bits)"
    with pytest.raises(ValueError, match=said) as caught:
        dataclasses.replace(good, **{field: size})
    assert len(str(caught.value)) < 200


def test_divisors_of_large_numbers_are_named_at_once_and_few():
    with pytest.raises(ValueError, match=r"choose groups from \[1, 2, 4, .*, 16384, 32768\]"):
        dataclasses.replace(MOE, experts=2**30, groups=3, groups_per_token=3)
    with pytest.raises(ValueError, match=r"choose groups from \[1, 2147483647\]"):
        dataclasses.replace(MOE, experts=2**31 - 1, groups=2)


@pytest.mark.parametrize("yarn", [YarnConfig(factor=1.0), YarnConfig(factor=1e30),
                                  YarnConfig(original_length=7), YarnConfig(mscale=0.0),
                                  YarnConfig(beta_fast=1.0), YarnConfig(beta_fast=1e30)])
def test_the_edges_of_yarn_are_the_references(yarn):
    here = dataclasses.replace(SMALLEST.rope, yarn=yarn)
    wanted = attention.rope_frequencies(8, here.theta, dataclasses.asdict(yarn))
    close(rope.frequencies(here, 8), wanted, 1e-14)
    scale = attention.softmax_scale(8, dataclasses.asdict(yarn))
    close(rope.softmax_scale(here, 8), scale, 1e-14)
