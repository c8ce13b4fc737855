"""small: DeepSeek-V3's architecture at 108 million parameters, for an hour of CPU or one GPU.

What it is: eight layers (the first dense), eight heads of latent attention, 32 experts of which a
token visits four in two of four groups, one shared expert, one multi-token prediction module. Long
enough to see the balance rule settle and multi-token prediction pay.

Source: DeepSeek-V3 report (arXiv 2412.19437), sec. 2 and 4.2, scaled down.
Machine: two CPU cores, about an hour; one GPU, minutes.
Expect: 108,130,016 parameters and, in the MTP module, 14,322,592 more. What it reaches on held-out
text has not been measured yet.
Command: dsjax train small
"""

from dsjax.config.loss import LossConfig
from dsjax.config.machine import MachineConfig
from dsjax.config.model import MLAConfig, ModelConfig, MoEConfig
from dsjax.config.run import OptimizerConfig, OutputConfig, PrecisionConfig, RunConfig, TrainConfig
from dsjax.config.schedule import LearningRate


def config() -> RunConfig:
    """A CPU hour on Shakespeare's works."""
    return RunConfig(
        name="small",
        model=ModelConfig(
            vocab=8192,
            d_model=512,
            layers=8,
            dense_layers=1,
            dense_dim=1536,
            attention=MLAConfig(
                heads=8, q_rank=256, kv_rank=128, nope_dim=64, rope_dim=32, value_dim=64
            ),
            moe=MoEConfig(
                experts=32,
                experts_per_token=4,
                expert_dim=256,
                shared_experts=1,
                groups=4,
                groups_per_token=2,
                scale=2.5,
            ),
            mtp_depth=1,
            init_std=0.02,
        ),
        train=TrainConfig(steps=2000, batch_size=4, seq_len=512),
        precision=PrecisionConfig(matmul="bf16"),
        learning_rate=LearningRate(
            peak=1e-3,
            low=1e-4,
            last=3e-5,
            warmup_steps=0.05,
            constant_steps=0.45,
            cosine_steps=0.45,
            low_steps=0.03,
            last_steps=0.02,
        ),
        loss=LossConfig(bias_speed=0.005),
        optimizer=OptimizerConfig(ema_decay=0.99),
        machine=MachineConfig(remat="v3"), output=OutputConfig(eval_every=200, save_every=200),
    )
