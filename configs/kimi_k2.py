"""Kimi-K2: V3's architecture with 384 experts, 64 heads and one dense layer; a trillion parameters.

61 layers of 7,168 channels, eight of 384 experts chosen without groups and one shared, affinities
normalized and scaled by 2.827, rotary base 50,000, half of V3's heads. It was trained with
MuonClip; the optimizer here is V3's AdamW, so this config counts it rather than retraces it.

YaRN is off: configs are pre-training, which had none. The released weights carry it (factor 32,
beta 1 and 1: one ramp step) and `dsjax convert` reads it from them; here
`--model.rope.yarn.factor 32 --model.rope.yarn.beta-fast 1` adds it. It has no parameters.

Source: Kimi K2 report (arXiv 2507.20534) and the released config of Kimi-K2.
Machine: a cluster; `dsjax show` counts it anywhere.
Expect: about 1.03 trillion parameters, 32.9 billion active, 70,272 cached bytes a token.
Command: dsjax show kimi_k2
"""

from dsjax.config.loss import LossConfig
from dsjax.config.machine import MachineConfig
from dsjax.config.model import MLAConfig, ModelConfig, MoEConfig, RopeConfig
from dsjax.config.run import PrecisionConfig, RunConfig, TrainConfig
from dsjax.config.schedule import LearningRate


def config() -> RunConfig:
    """The model in pre-training."""
    return RunConfig(
        name="kimi_k2",
        model=ModelConfig(
            vocab=163840,
            d_model=7168,
            layers=61,
            dense_layers=1,
            dense_dim=18432,
            attention=MLAConfig(
                heads=64, q_rank=1536, kv_rank=512, nope_dim=128, rope_dim=64, value_dim=128
            ),
            moe=MoEConfig(
                experts=384,
                experts_per_token=8,
                expert_dim=2048,
                shared_experts=1,
                scale=2.827,
            ),
            rope=RopeConfig(theta=50000.0),
        ),
        train=TrainConfig(
            steps=231000,
            batch_size=16384,
            seq_len=4096,
        ),
        precision=PrecisionConfig(matmul="bf16", activations="bfloat16"),
        learning_rate=LearningRate(
            peak=2e-4,
            low=2e-5,
            last=2e-5,
            warmup_steps=500,
            constant_steps=149000,
            cosine_steps=81500,
        ),
        loss=LossConfig(),
        machine=MachineConfig(remat="v3"),
    )
