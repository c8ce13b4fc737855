"""DeepSeek-V2: 235,741,434,880 parameters, 21.4 billion active, three balance losses.

8.1 trillion tokens, learning rate 2.4e-4 cut by 0.316 at 60 % and 90 %, batch 9,216 rows of 4,096
(its ramp from 2,304 over 225 billion tokens is left out of the steps here). Experts are chosen from
the three best of eight groups, a group's score is its best expert; affinities are a softmax, not
normalized, scaled by 16; balance losses 0.003, 0.05 and 0.02.

YaRN is off: configs are pre-training, which had none. The released weights carry it (factor 40, as
extended to 128K after pre-training) and `dsjax convert` reads it from them; here
`--model.rope.yarn.factor 40` adds it. It has no parameters.

Source: DeepSeek-V2 report (arXiv 2405.04434), sec. 2, 3.1.2 and config_236B.json of DeepSeek-V3.
Machine: a cluster; `dsjax show` counts it anywhere.
Expect: 235,741,434,880 parameters, 155.3 GFLOP and 69,120 cached bytes a token.
Command: dsjax show deepseek_v2
"""

from dsjax.config.loss import LossConfig
from dsjax.config.machine import MachineConfig
from dsjax.config.model import MLAConfig, ModelConfig, MoEConfig
from dsjax.config.run import PrecisionConfig, RunConfig, TrainConfig
from dsjax.config.schedule import StepDecay


def config() -> RunConfig:
    """The pre-training as reported."""
    return RunConfig(
        name="deepseek_v2",
        model=ModelConfig(
            vocab=102400,
            d_model=5120,
            layers=60,
            dense_layers=1,
            dense_dim=12288,
            attention=MLAConfig(
                heads=128, q_rank=1536, kv_rank=512, nope_dim=128, rope_dim=64, value_dim=128
            ),
            moe=MoEConfig(
                experts=160,
                experts_per_token=6,
                expert_dim=1536,
                shared_experts=2,
                score="softmax",
                groups=8,
                groups_per_token=3,
                group_score="max",
                is_normalized=False,
                scale=16.0,
                has_bias=False,
            ),
        ),
        train=TrainConfig(
            steps=214577,
            batch_size=9216,
            seq_len=4096,
        ),
        precision=PrecisionConfig(matmul="bf16", activations="bfloat16"),
        learning_rate=StepDecay(peak=2.4e-4, warmup_steps=2000, cuts=(128746, 193119)),
        loss=LossConfig(
            balance=0.0, expert_balance=0.003, device_balance=0.05, communication_balance=0.02
        ),
        machine=MachineConfig(remat="v3"),
    )
