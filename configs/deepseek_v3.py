"""DeepSeek-V3 / R1 / V3.1: 671,026,419,200 parameters, 37.6 billion active, and the MTP module.

The pre-training recipe of the report: 14.8 trillion tokens in rows of 4,096, batch 3,072 growing to
15,360 rows over the first 469 billion tokens, AdamW 0.9 / 0.95, decay 0.1, clip 1.0, warm-up to
2.2e-4 in 2,000 steps, constant to 10 trillion tokens, cosine to 2.2e-5 over 4.3 trillion, then 333
billion at 2.2e-5 and 167 billion at 7.3e-6; MTP weight 0.3 then 0.1, bias speed 0.001 until 14.3
trillion; fill-in-the-middle at rate 0.1; no attention mask between packed documents. Parameters
start at standard deviation 0.006.

The report does not give the ramp's shape. Here it has four equal parts of 3,072, 6,144, 9,216 and
12,288 rows: 7,680 rows a step on average, so 469 billion tokens take 469e9 / (7,680 x 4,096) =
14,909 steps. The other 14.33 trillion take 227,785 steps of 15,360 x 4,096 tokens, 242,694 in all;
what the report dates by tokens (rate, MTP weight, bias speed) is placed at the step that reaches
them.

YaRN is off: configs are pre-training, which had none. The released weights carry it (factor 40, as
extended to 128K after pre-training) and `dsjax convert` reads it from them; here
`--model.rope.yarn.factor 40` adds it. It has no parameters.

On 2,048 devices without a pipeline (compiled ahead and not run, experiments/pod): 16,384 rows, as
15,360 do not divide over them, one row a device at a time. An H200 has room for what V3 keeps for
the backward pass; a v5p makes it again. With --parallel.interleave two rows go side by side.

    dsjax compile deepseek_v3 --on h200:256x8 --parallel.data 4 --parallel.fsdp 8 \\
        --parallel.expert 64 --parallel.expert-nodes 8 --precision bf16 \\
        --train.batch-size 16384 --train.microbatches 8 --train.batch-size-start None
    dsjax compile deepseek_v3 --on v5p:8x16x16 --parallel.data 4 --parallel.fsdp 8 \\
        --parallel.expert 64 --precision bf16 --machine.remat full \\
        --train.batch-size 16384 --train.microbatches 8 --train.batch-size-start None

Source: DeepSeek-V3 report (arXiv 2412.19437), sec. 2, 4.1 and 4.2; shapes of the released R1.
Machine: 2,048 H800 for two months in the report; `dsjax show` counts it anywhere.
Expect: 671,026,419,200 main and 11,610,068,224 MTP parameters; 250.46 GFLOP and 70,272 cached
bytes a token.
Command: dsjax show deepseek_v3
"""

from dsjax.config.loss import LossConfig
from dsjax.config.machine import MachineConfig
from dsjax.config.model import MLAConfig, ModelConfig, MoEConfig
from dsjax.config.run import DataConfig, PrecisionConfig, RunConfig, TrainConfig
from dsjax.config.schedule import LearningRate

LENGTH = 4096
START, BATCH = 3072, 15360  # rows before and after the ramp
RAMP, CONSTANT, COSINE, LOW, LAST = 469e9, 10.0e12, 4.3e12, 333e9, 167e9  # tokens, sec. 4.2


def config() -> RunConfig:
    """The pre-training as reported."""
    parts = list(range(START, BATCH, START))  # the ramp's rows; its last step comes before BATCH
    ramp = round(RAMP / (sum(parts) / len(parts) * LENGTH))
    full, cosine, low, last = (
        round(part / (BATCH * LENGTH)) for part in (CONSTANT - RAMP, COSINE, LOW, LAST)
    )
    constant = ramp + full
    steps = constant + cosine + low + last
    return RunConfig(
        name="deepseek_v3",
        model=ModelConfig(
            vocab=129280,
            d_model=7168,
            layers=61,
            dense_layers=3,
            dense_dim=18432,
            attention=MLAConfig(
                heads=128, q_rank=1536, kv_rank=512, nope_dim=128, rope_dim=64, value_dim=128
            ),
            moe=MoEConfig(
                experts=256,
                experts_per_token=8,
                expert_dim=2048,
                shared_experts=1,
                groups=8,
                groups_per_token=4,
                scale=2.5,
            ),
            mtp_depth=1,
        ),
        train=TrainConfig(
            steps=steps,
            batch_size=BATCH,
            seq_len=LENGTH,
            batch_size_start=START,
            batch_size_ramp_steps=ramp,
            batch_size_multiple=START,
        ),
        precision=PrecisionConfig(matmul="fp8", activations="bfloat16"),
        learning_rate=LearningRate(
            peak=2.2e-4,
            low=2.2e-5,
            last=7.3e-6,
            warmup_steps=2000,
            constant_steps=constant - 2000,
            cosine_steps=cosine,
            low_steps=low,
            last_steps=last,
        ),
        loss=LossConfig(mtp_late_from=constant / steps, bias_until=(constant + cosine) / steps),
        data=DataConfig(fim_rate=0.1),
        machine=MachineConfig(remat="v3"),
    )
