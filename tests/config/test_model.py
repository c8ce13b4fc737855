"""A model that cannot be is refused when it is written down, in one sentence with the remedy."""

import dataclasses

import pytest

from dsjax.config.loss import LossConfig
from dsjax.config.model import (
    GQAConfig,
    MLAConfig,
    ModelConfig,
    MoEConfig,
    RopeConfig,
    YarnConfig,
)
from dsjax.config.run import DataConfig, OptimizerConfig
from dsjax.config.schedule import LearningRate

MLA = MLAConfig(heads=3, kv_rank=8, nope_dim=5, rope_dim=4, value_dim=7)
MOE = MoEConfig(experts=6, experts_per_token=2, expert_dim=5, groups=3, groups_per_token=2)
GQA = GQAConfig(heads=6, kv_heads=2, head_dim=4)
MODEL = ModelConfig(vocab=11, d_model=10, layers=3, dense_layers=1, dense_dim=9, attention=MLA,
                    moe=MOE)

REFUSED = [
    (MLA, {"rope_dim": 5}, "rope_dim=5 is odd"),
    (MLA, {"q_rank": 0}, "q_rank=0 must be at least 1"),
    (MLA, {"heads": -1}, "heads=-1 must be at least 1"),
    (GQA, {"kv_heads": 4}, r"kv_heads=4; choose kv_heads from \[1, 2, 3, 6\]"),
    (GQA, {"head_dim": 3}, "head_dim=3 is odd"),
    (MOE, {"groups": 4}, r"groups=4; choose groups from \[1, 2, 3, 6\]"),
    (MOE, {"groups_per_token": 4}, "exceeds groups=3; choose at most 3"),
    (MOE, {"groups_per_token": 1, "experts_per_token": 3}, "exceeds the 2 experts of 1 of 3"),
    (MOE, {"groups": 6}, "use group_score='max'"),
    (MOE, {"capacity_factor": 0.0}, "use None"),
    (MOE, {"shared_experts": -1}, "must be at least 1"),
    (MOE, {"experts_per_token": 0}, "experts_per_token=0 must be at least 1"),
    (MODEL, {"moe": None}, "leaves 2 blocks without a feed-forward; set dense_layers=3"),
    (MODEL, {"dense_layers": 4}, "dense_layers=4 is not between 0 and layers=3"),
    (MODEL, {"mtp_depth": -1}, "use 0 for none"),
    (MODEL, {"vocab": 0}, "vocab=0 must be at least 1"),
    (RopeConfig(), {"theta": 1.0}, "theta=1.0 must be above 1"),
    (YarnConfig(), {"factor": 0.5}, "would shrink the context"),
    (YarnConfig(), {"beta_fast": 0.5}, "below beta_slow"),
    (LossConfig(), {"bias_speed": float("nan")}, "LossConfig.bias_speed=nan is not a finite"),
    (LearningRate(), {"peak": float("nan")}, "LearningRate.peak=nan is not a finite"),
    (LearningRate(), {"peak": float("inf")}, "LearningRate.peak=inf is not a finite"),
    (OptimizerConfig(), {"clip": float("inf")}, "OptimizerConfig.clip=inf is not a finite"),
    (DataConfig(), {"fim_rate": float("nan")}, "DataConfig.fim_rate=nan is not a finite"),
    (MOE, {"scale": float("nan")}, "MoEConfig.scale=nan is not a finite"),
    (MODEL, {"init_std": float("inf")}, "ModelConfig.init_std=inf is not a finite"),
    (YarnConfig(), {"mscale": float("nan")}, "YarnConfig.mscale=nan is not a finite"),
    (MLA, {"latent_norm_eps": 0.0}, "latent_norm_eps=0.0 must be above 0"),
    (LossConfig(), {"balance": -1.0}, "balance=-1.0 is negative"),
    (LossConfig(), {"mtp_late_from": 2.0}, "a number from 0 to 1"),
]


@pytest.mark.parametrize(("good", "change", "sentence"), REFUSED, ids=[str(r[1]) for r in REFUSED])
def test_a_contradiction_is_refused_with_its_values_and_remedy(good, change, sentence):
    with pytest.raises(ValueError, match=sentence) as caught:
        dataclasses.replace(good, **change)
    assert "\n" not in str(caught.value)


def test_a_dense_model_needs_no_mixture_and_a_mixture_no_group_limit():
    assert dataclasses.replace(MODEL, moe=None, dense_layers=3).moe_layers == 0
    assert MODEL.moe_layers == 2
    assert dataclasses.replace(MOE, groups=1, groups_per_token=1, experts=7).experts == 7
    assert MLA.qk_dim == 9


def test_configs_are_values():
    assert dataclasses.replace(MODEL) == MODEL
    assert hash(dataclasses.replace(MODEL)) == hash(MODEL)
    with pytest.raises(dataclasses.FrozenInstanceError):
        MODEL.vocab = 12
