"""A run that trains in seconds, as a config file and as an object, and text for it to read."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from dsjax.config.loss import LossConfig
from dsjax.config.model import MLAConfig, ModelConfig, MoEConfig
from dsjax.config.run import DataConfig, OptimizerConfig, OutputConfig, RunConfig, TrainConfig
from dsjax.config.schedule import LearningRate
from dsjax.report.metrics import CLOCK

MODEL = ModelConfig(
    vocab=300,
    d_model=24,
    layers=2,
    dense_layers=1,
    dense_dim=32,
    attention=MLAConfig(heads=3, kv_rank=8, nope_dim=6, rope_dim=4, value_dim=5, q_rank=10),
    moe=MoEConfig(experts=6, experts_per_token=2, expert_dim=9, groups=3, groups_per_token=2),
    mtp_depth=1,
    init_std=0.1,
)


def small_run(out: Path, text: Path, steps: int = 24) -> RunConfig:
    """A two-layer model on a few kilobytes of text."""
    return RunConfig(
        name="small_run",
        model=MODEL,
        train=TrainConfig(steps=steps, batch_size=4, seq_len=16),
        learning_rate=LearningRate(peak=3e-3, warmup_steps=2, constant_steps=steps),
        loss=LossConfig(bias_speed=0.01),
        optimizer=OptimizerConfig(ema_decay=0.9, ema_every=2),
        data=DataConfig(train=str(text), heldout_fraction=0.1),
        output=OutputConfig(folder=str(out), eval_every=12, eval_batches=2, save_every=6,
                            log_every=1),
    )


def write_text(path: Path) -> Path:
    """Write 40 kB of words that a bigram could learn."""
    draw = random.Random(0)
    words = ["speak", "the", "speech", "I", "pray", "you", "as", "pronounced", "it", "to"]
    lines = (" ".join(draw.choice(words) for _ in range(8)) + ".\n" for _ in range(1000))
    path.write_text("".join(lines))
    return path


def numbers(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Events without what depends on the clock."""
    return [{k: v for k, v in event.items() if k not in CLOCK} for event in events]
