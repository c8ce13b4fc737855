"""Settings of a tuning run, from the folder whose model it tunes.

V3's fine-tuning (report sec. 5.1): two epochs, a cosine from 5e-6 to 1e-6. Adapters begin at
nothing and take the larger rates of their paper (arXiv 2106.09685, table 11). Routers' biases rest
and no balance is asked for: the data of a task are narrow, and the router has learnt.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from dsjax import weights
from dsjax.config.loss import LossConfig
from dsjax.config.model import ModelConfig
from dsjax.config.run import DataConfig, OptimizerConfig, OutputConfig, RunConfig, TrainConfig
from dsjax.config.schedule import LearningRate
from dsjax.config.sft import SFTConfig

RATE = LearningRate(peak=5e-6, low=1e-6, last=1e-6, warmup_steps=0.03, cosine_steps=0.97)
ADAPTERS = LearningRate(peak=2e-4, low=2e-5, last=2e-5, warmup_steps=0.03, cosine_steps=0.97)
ROWS, LENGTH = 8, 1024
MTP_WEIGHT = 0.1
"""lambda of MTP modules that learn along: V3's at the end of pre-training (sec. 4.2)."""


def start(folder: Path, steps: int) -> RunConfig:
    """The run that tunes the model of a folder; `steps` stand for those that follow from epochs.

    Raises:
        UserError: the folder holds no weights.
    """
    folder = folder.absolute()
    return of_model(weights.model(folder), str(folder), steps)


def of_model(model: ModelConfig, folder: str, steps: int) -> RunConfig:
    """The run that tunes a model, whose weights lie in a folder; see `start`."""
    return RunConfig(
        name=f"{Path(folder).name or 'model'}-sft",
        model=model,
        train=TrainConfig(steps=steps, batch_size=ROWS, seq_len=LENGTH),
        learning_rate=RATE,
        optimizer=OptimizerConfig(weight_decay=0.0),
        loss=LossConfig(balance=0.0, bias_speed=0.0, mtp_weight=MTP_WEIGHT,
                        mtp_weight_late=MTP_WEIGHT),
        data=DataConfig(),
        output=OutputConfig(),
        init_from=folder,
        sft=SFTConfig())


def settled(run: RunConfig) -> RunConfig:
    """The run that some flags ask for: its MTP modules, and the rate of adapters."""
    if run.sft is not None and not run.sft.mtp:
        run = dataclasses.replace(run, model=dataclasses.replace(run.model, mtp_depth=0))
    if run.lora is not None and run.learning_rate == RATE:
        run = dataclasses.replace(run, learning_rate=ADAPTERS)
    return run
