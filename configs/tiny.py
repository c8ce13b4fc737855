"""tiny: the complete DeepSeek-V3 architecture at 10 million parameters, for a laptop's CPU.

What it is: multi-head latent attention with query compression, one dense layer and three mixture
layers of 16 experts in 4 groups (2 open, 4 chosen) with one shared expert, sigmoid affinities,
auxiliary-loss-free balancing with the small sequence-wise loss, and one multi-token prediction
module (V3 report sec. 2). Optimized as V3: products in FP8 (sec. 3.3; emulated to the bit on a
CPU), AdamW with bfloat16 moments, weight decay 0.1 on matrices, clip 1.0, and the five-part
learning rate in shares of the run, so that one of other --train.steps cools down as well.

It learns the embedded corpus, the works of Shakespeare, with a byte-level BPE of 4,096 ids trained
on the same text. The bias moves 0.02 a step and the sequence-wise loss weighs 0.01, twenty and a
hundred times V3's: six hundred steps at a rate 14 times V3's leave the rule less time. Matrices
start with standard deviation 0.02: V3's 0.006 is made for a width 28 times as large.

Source: DeepSeek-V3 report (arXiv 2412.19437), sec. 2 and 4.2, scaled down.
Machine: two CPU cores, about four minutes.
Expect: held-out bits per byte below an interpolated byte 5-gram's, see README.
Command: dsjax train tiny
"""

from dsjax.config.loss import LossConfig
from dsjax.config.machine import MachineConfig
from dsjax.config.model import MLAConfig, ModelConfig, MoEConfig
from dsjax.config.run import OptimizerConfig, OutputConfig, PrecisionConfig, RunConfig, TrainConfig
from dsjax.config.schedule import LearningRate


def config() -> RunConfig:
    """The demo's run."""
    return RunConfig(
        name="tiny",
        model=ModelConfig(
            vocab=4096,
            d_model=256,
            layers=4,
            dense_layers=1,
            dense_dim=768,
            attention=MLAConfig(
                heads=4, q_rank=128, kv_rank=64, nope_dim=32, rope_dim=16, value_dim=32
            ),
            moe=MoEConfig(
                experts=16,
                experts_per_token=4,
                expert_dim=128,
                shared_experts=1,
                groups=4,
                groups_per_token=2,
                scale=2.5,
            ),
            mtp_depth=1,
            init_std=0.02,
        ),
        train=TrainConfig(steps=600, batch_size=8, seq_len=256),
        precision=PrecisionConfig(matmul="fp8"),
        learning_rate=LearningRate(
            peak=3e-3,
            low=3e-4,
            last=1e-4,
            warmup_steps=30 / 600,
            constant_steps=240 / 600,
            cosine_steps=290 / 600,
            low_steps=20 / 600,
            last_steps=20 / 600,
        ),
        loss=LossConfig(balance=0.01, bias_speed=0.02),
        optimizer=OptimizerConfig(ema_decay=0.98),
        machine=MachineConfig(remat="v3"), output=OutputConfig(eval_every=100, save_every=200),
    )
