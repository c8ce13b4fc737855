"""r1_zero: DeepSeek-R1-Zero's recipe, GRPO from rules on DeepSeek-V3-Base.

As reported: rollouts of 8,192 outputs, 16 to each of 512 questions, at temperature 1 and of at most
32,768 tokens (65,536 after step 8,200), in 16 updates of 512 outputs for one epoch; rate 3e-6, KL
weight 0.001, clip 10, the reference replaced every 400 updates, accuracy and format of equal
weight by rules; 10,400 updates. No reward model and no supervised start.

Not in the report: engine and trainer multiply in bfloat16, so tokens are weighed by truncated
importance weights (correction), and the experts of a rollout are replayed. A step here is a
rollout: 650 of them, the reference replaced every 25. Questions come from a file
(`--rl.task problems.jsonl`, as MATH's or GSM8K's), the base is a released checkpoint; the balance
rule's biases stay as they are.

On 2,048 devices the trainer is a pipeline of 4 ranks, since 512 outputs do not lie on more than 512
devices, and makes activations again; the engine has its own layout of the same devices, 4 outputs
on each. The update compiles ahead for 2,048 H200, but does not fit them: a row of 33,792 tokens
lies on one device whole, and its activations take several times what a device has, as the command
says.

    dsjax compile r1_zero --on h200:256x8

Source: DeepSeek-R1 report (arXiv 2501.12948 v2), sec. 2 and its supplement; the model, DeepSeek-V3
(arXiv 2412.19437).
Machine: 512 H800 for about 198 hours in the report.
Expect: AIME 2024 pass@1 from 15.6 to 77.9 in the report; nothing of it was run here.
Command: dsjax rl r1_zero --init-from DeepSeek-V3-Base --rl.task problems.jsonl
"""

import dataclasses

from dsjax.config import load
from dsjax.config.machine import MachineConfig
from dsjax.config.parallel import ParallelConfig
from dsjax.config.rl import RLConfig
from dsjax.config.run import OutputConfig, PrecisionConfig, RunConfig, TrainConfig

UPDATES = 16
"""Of a rollout."""


def config() -> RunConfig:
    """The reinforcement learning as reported, up to 32,768 tokens an output."""
    base = load.load("deepseek_v3")
    return dataclasses.replace(
        base,
        name="r1_zero",
        model=dataclasses.replace(base.model, mtp_depth=0),
        train=TrainConfig(steps=10400, batch_size=512, seq_len=33792),
        precision=PrecisionConfig(matmul="bf16", activations="bfloat16"),
        parallel=ParallelConfig(pipe=4, schedule="1f1b", data=8, expert=64, expert_nodes=8),
        machine=MachineConfig(remat="full"),
        output=OutputConfig(save_every=1, log_every=1),
        rl=RLConfig(
            steps=10400 // UPDATES,
            prompts=512,
            samples=16,
            updates=UPDATES,
            max_prompt_tokens=1025,  # rows of 33,792 positions
            max_new_tokens=32768,
            task="problems.jsonl",
            template="r1_zero",
            rewards="math,format",
            learning_rate=3e-6,
            clip_low=10.0,
            clip_high=10.0,
            kl_weight=0.001,
            reference_every=400 // UPDATES,
            correction="token",
            engine=ParallelConfig(data=32, expert=64, expert_nodes=8),
        ),
    )
