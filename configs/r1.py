"""r1: the first reinforcement learning of DeepSeek-R1, from a model with a supervised start.

As r1_zero, with R1's differences: the model has been tuned on long worked solutions first (2 to 3
epochs, rate 5e-5 to 5e-6 by cosine, batch 128, context 32,768: `dsjax sft`), and language
consistency is added to accuracy and format. The report's second reinforcement learning is this at
temperature 0.7 for 1,700 updates, with rewards of preference models on general questions in the
last 400 (`--rl.preference`); neither is part of this config.

    dsjax compile r1 --on h200:256x8

Source: DeepSeek-R1 report (arXiv 2501.12948 v2), sec. 2.3 and its supplement.
Machine: 512 H800 for about 80 hours in the report.
Expect: AIME 2024 pass@1 of 79.8 after all four stages in the report; nothing of it was run here.
Command: dsjax rl r1 --init-from runs/cold_start --rl.task problems.jsonl
"""

import dataclasses

from dsjax.config import load
from dsjax.config.run import RunConfig


def config() -> RunConfig:
    """R1-Zero's with the reward of stage two."""
    base = load.load("r1_zero")
    assert base.rl is not None
    return dataclasses.replace(
        base, name="r1", rl=dataclasses.replace(base.rl, rewards="math,format,language"))
