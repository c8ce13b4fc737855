"""DeepSeek-V3 / R1 / V3.1: 671,026,419,200 parameters, 37.6 billion active, and the MTP module.

The pre-training recipe of the report: 14.8 trillion tokens in rows of 4,096, batch 3,072 growing to
15,360 rows over the first 469 billion tokens, AdamW 0.9 / 0.95, decay 0.1, clip 1.0, warm-up to
2.2e-4 in 2,000 steps, constant to 10 trillion tokens, cosine to 2.2e-5 over 4.3 trillion, then 333
billion at 2.2e-5 and 167 billion at 7.3e-6; MTP weight 0.3 then 0.1, bias speed 0.001 until 14.3
trillion; fill-in-the-middle at rate 0.1; no attention mask between packed documents. Parameters
start at standard deviation 0.006. Lengths here are in steps of 15,360 x 4,096 tokens.

Source: DeepSeek-V3 report (arXiv 2412.19437), sec. 2, 4.1 and 4.2; shapes of the released R1.
Machine: 2,048 H800 for two months in the report; `dsjax show` counts it anywhere.
Expect: 671,026,419,200 main and 11,610,068,224 MTP parameters; 250.46 GFLOP and 70,272 cached
bytes a token.
Command: dsjax show deepseek_v3
"""

from dsjax.config.model import MLAConfig, ModelConfig, MoEConfig
from dsjax.config.run import DataConfig, PlaceConfig, RunConfig, TrainConfig
from dsjax.config.schedule import LearningRate

STEP_TOKENS = 15360 * 4096
CONSTANT, COSINE, LOW, LAST = 10.0e12, 4.3e12, 333e9, 167e9  # tokens of the rate's parts, sec. 4.2


def config() -> RunConfig:
    """The model as released, the run as reported."""
    constant, cosine, low, last = (
        round(part / STEP_TOKENS) for part in (CONSTANT, COSINE, LOW, LAST)
    )
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
            steps=round((CONSTANT + COSINE + LOW + LAST) / STEP_TOKENS),
            batch=15360,
            length=4096,
            batch_start=3072,
            batch_ramp_steps=round(469e9 / STEP_TOKENS),
            batch_multiple=3072,
            precision="bf16",
            activations="bfloat16",
        ),
        rate=LearningRate(
            peak=2.2e-4,
            low=2.2e-5,
            last=7.3e-6,
            warmup_steps=2000,
            constant_steps=constant - 2000,
            cosine_steps=cosine,
            low_steps=low,
            last_steps=last,
        ),
        data=DataConfig(fim_rate=0.1),
        place=PlaceConfig(remat="v3"),
    )
