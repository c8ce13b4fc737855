"""Run that the studies of claims start from: V3's architecture at two cores' size, in minutes.

Width 64, one dense and three mixture layers of 16 experts (4 chosen, one shared), latent attention,
no MTP module, float32; the embedded plays as bytes in 512 ids, batches of 8 rows of 128 tokens. An
arm is one difference from it.
"""

from __future__ import annotations

from dsjax.config.loss import LossConfig
from dsjax.config.model import MLAConfig, ModelConfig, MoEConfig
from dsjax.config.run import OptimizerConfig, OutputConfig, RunConfig, TrainConfig
from dsjax.config.schedule import LearningRate

STEPS = 300
RATE = LearningRate(peak=4e-3, low=4e-4, warmup_steps=0.05, constant_steps=0.45, cosine_steps=0.5)
MLA = MLAConfig(heads=4, kv_rank=29, nope_dim=16, rope_dim=8, value_dim=16)
"""16,320 parameters a layer, of which MHA of four heads of 16 has 16,384."""
MOE = MoEConfig(experts=16, experts_per_token=4, expert_dim=32, shared_experts=1)


def config(name: str, steps: int = STEPS) -> RunConfig:
    """The run of a study of this name, before its arms change one thing each."""
    return RunConfig(
        name=name,
        model=ModelConfig(vocab=512, d_model=64, layers=4, dense_layers=1, dense_dim=160,
                          attention=MLA, moe=MOE, init_std=0.06),
        train=TrainConfig(steps=steps, batch_size=8, seq_len=128),
        learning_rate=RATE,
        loss=LossConfig(balance=0.0, bias_speed=0.01),
        optimizer=OptimizerConfig(),
        output=OutputConfig(eval_every=60, eval_batches=24),
    )
