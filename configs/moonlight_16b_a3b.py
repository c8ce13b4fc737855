"""Moonlight-16B-A3B: V3's architecture at V2-Lite's width, 64 experts, sigmoid router with bias.

Same family, other hands: 27 layers of 2,048 channels, 16 heads without query compression, 64 routed
and two shared experts, six chosen without groups, affinities normalized and scaled by 2.446, rotary
base 50,000, RMSNorm epsilon 1e-5. It was trained with Muon; the optimizer here is V3's AdamW with
the report's peak rate: this config counts it, it does not retrace it.

YaRN is off: configs are pre-training, which had none, and the released weights (at 8K) carry none.

Source: Moonlight (arXiv 2502.16982) and the released config of Moonlight-16B-A3B.
Machine: one host with 8 accelerators trains it; 32 GB of memory run it.
Expect: about 16 billion parameters, 31,104 cached bytes a token.
Command: dsjax show moonlight_16b_a3b
"""

from dsjax.config.loss import LossConfig
from dsjax.config.machine import MachineConfig
from dsjax.config.model import MLAConfig, ModelConfig, MoEConfig, RopeConfig
from dsjax.config.run import PrecisionConfig, RunConfig, TrainConfig
from dsjax.config.schedule import LearningRate


def config() -> RunConfig:
    """The model in pre-training."""
    return RunConfig(
        name="moonlight_16b_a3b",
        model=ModelConfig(
            vocab=163840,
            d_model=2048,
            layers=27,
            dense_layers=1,
            dense_dim=11264,
            attention=MLAConfig(
                heads=16, kv_rank=512, nope_dim=128, rope_dim=64, value_dim=128
            ),
            moe=MoEConfig(
                experts=64,
                experts_per_token=6,
                expert_dim=1408,
                shared_experts=2,
                scale=2.446,
            ),
            rope=RopeConfig(theta=50000.0),
            norm_eps=1e-5,
        ),
        train=TrainConfig(
            steps=339865,
            batch_size=4096,
            seq_len=4096,
        ),
        precision=PrecisionConfig(matmul="bf16", activations="bfloat16"),
        learning_rate=LearningRate(
            peak=4.2e-4, low=4.2e-5, last=4.2e-5, warmup_steps=2000, cosine_steps=337865
        ),
        loss=LossConfig(),
        machine=MachineConfig(remat="v3"),
    )
