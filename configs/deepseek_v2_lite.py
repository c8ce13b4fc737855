"""DeepSeek-V2-Lite: 15,706,484,224 parameters, 2.7 billion active; queries are not compressed.

5.7 trillion tokens, learning rate 4.2e-4 cut by 0.316 at 80 % and 90 %, batch 4,608 rows of 4,096.
64 routed and two shared experts, six chosen greedily, softmax affinities as they are; one balance
loss of 0.001.

YaRN is off: configs are pre-training, which had none. The released weights carry it (factor 40,
both mscales 0.707) and `dsjax convert` reads it from them; here `--model.rope.yarn.factor 40
--model.rope.yarn.mscale 0.707 --model.rope.yarn.mscale-all-dim 0.707` adds it. It has no
parameters.

Source: DeepSeek-V2 report (arXiv 2405.04434), App. B, and config_16B.json of DeepSeek-V3.
Machine: one host with 8 accelerators trains it; 32 GB of memory run it.
Expect: 15,706,484,224 parameters and 31,104 cached bytes a token.
Command: dsjax show deepseek_v2_lite
"""

from dsjax.config.loss import LossConfig
from dsjax.config.machine import MachineConfig
from dsjax.config.model import MLAConfig, ModelConfig, MoEConfig
from dsjax.config.run import PrecisionConfig, RunConfig, TrainConfig
from dsjax.config.schedule import StepDecay


def config() -> RunConfig:
    """The pre-training as reported."""
    return RunConfig(
        name="deepseek_v2_lite",
        model=ModelConfig(
            vocab=102400,
            d_model=2048,
            layers=27,
            dense_layers=1,
            dense_dim=10944,
            attention=MLAConfig(
                heads=16, kv_rank=512, nope_dim=128, rope_dim=64, value_dim=128
            ),
            moe=MoEConfig(
                experts=64,
                experts_per_token=6,
                expert_dim=1408,
                shared_experts=2,
                score="softmax",
                group_score="max",
                is_normalized=False,
                has_bias=False,
            ),
        ),
        train=TrainConfig(
            steps=301997,
            batch_size=4608,
            seq_len=4096,
        ),
        precision=PrecisionConfig(matmul="bf16", activations="bfloat16"),
        learning_rate=StepDecay(peak=4.2e-4, warmup_steps=2000, cuts=(241598, 271797)),
        loss=LossConfig(balance=0.0, expert_balance=0.001),
        machine=MachineConfig(remat="v3"),
    )
