"""r1_zero_tiny: R1-Zero's observation, from nothing, on a laptop's CPU.

What it is: a DeepSeek-V3 of 1.2 million parameters (latent attention, one dense layer and two
mixture layers of 8 experts, two of them a token in two of four groups, one shared) is pre-trained
on sums of eight digits modulo 10, of which a quarter are worked out digit by digit before the
answer. Then GRPO on the answer alone, 45 rollouts of 32 questions and 8 outputs: held-out accuracy
climbs and outputs grow, because the working out that the base was shown is right and guesses are
not. This selects a habit of the base and invents none.

The base is trained at one rate, so that one whose worked solutions are not right 93 % of the time
yet goes on where it stands, 50 steps at a time. Its balance rule is stronger than V3's, as its
steps are few. RL has no KL and a rate of 1e-4; R1 has 0.001 and 3e-6.

Source: DeepSeek-R1 report (arXiv 2501.12948), sec. 2.2; the task, arXiv 2510.11495.
Machine: two CPU cores, 10 to 20 minutes beside other programs.
Expect: outputs that grow to the length of the worked solutions, and as many right answers as these
have; three seeds are recorded in experiments/r1.
Command: dsjax rl r1_zero_tiny
"""

from dsjax.config.loss import LossConfig
from dsjax.config.model import MLAConfig, ModelConfig, MoEConfig
from dsjax.config.rl import RLConfig
from dsjax.config.run import DataConfig, OutputConfig, RunConfig, TrainConfig
from dsjax.config.schedule import LearningRate


def config() -> RunConfig:
    """The base's run, and what RL makes of it."""
    return RunConfig(
        name="r1_zero_tiny",
        model=ModelConfig(
            vocab=260,
            d_model=128,
            layers=3,
            dense_layers=1,
            dense_dim=384,
            attention=MLAConfig(
                heads=4, q_rank=64, kv_rank=32, nope_dim=32, rope_dim=16, value_dim=32
            ),
            moe=MoEConfig(
                experts=8,
                experts_per_token=2,
                expert_dim=96,
                shared_experts=1,
                groups=4,
                groups_per_token=2,
                scale=2.5,
            ),
            mtp_depth=0,
            init_std=0.08,
        ),
        train=TrainConfig(steps=400, batch_size=16, seq_len=240),
        learning_rate=LearningRate(peak=2e-3, warmup_steps=30, constant_steps=370),
        loss=LossConfig(balance=0.01, bias_speed=0.01),
        data=DataConfig(packing="segments", heldout_fraction=0.01),
        output=OutputConfig(save_every=1, log_every=1),
        rl=RLConfig(steps=45, kl_weight=0.0),
    )
