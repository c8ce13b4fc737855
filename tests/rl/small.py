"""A run of reinforcement learning that takes seconds: two layers, sums of digits, drawn weights."""

from __future__ import annotations

import dataclasses
import functools
import io
from pathlib import Path
from typing import Any

import jax

from dsjax.config.loss import LossConfig
from dsjax.config.model import MLAConfig, ModelConfig, MoEConfig
from dsjax.config.parallel import ParallelConfig
from dsjax.config.rl import RLConfig
from dsjax.config.run import DataConfig, OutputConfig, RunConfig, TrainConfig
from dsjax.config.schedule import LearningRate
from dsjax.data.tokenizers.tokenizer import Tokenizer, train_bpe
from dsjax.infer.engine.engine import Engine
from dsjax.model import transformer
from dsjax.report import metrics
from dsjax.rl import loop, weights
from dsjax.rl.tasks import catalog
from dsjax.rl.tasks.task import CHARACTERS, Problem, problems
from dsjax.terminal import Console
from tests.train.small_run import numbers

LEVEL = 12  # 24 tokens, and one page of 16 that a second asker of the question finds
MODEL = ModelConfig(
    vocab=260, d_model=24, layers=3, dense_layers=1, dense_dim=32,
    attention=MLAConfig(heads=3, kv_rank=8, nope_dim=6, rope_dim=4, value_dim=5, q_rank=10),
    moe=MoEConfig(experts=6, experts_per_token=2, expert_dim=9, groups=3, groups_per_token=2),
    mtp_depth=0, init_std=0.3)
RL = RLConfig(steps=4, prompts=3, samples=4, max_prompt_tokens=24, max_new_tokens=7, level=LEVEL,
              learning_rate=1e-3, kl_weight=0.01, reference_every=2, samples_every=2,
              eval_every=0, eval_prompts=4)
RUN = RunConfig(name="small_rl", model=MODEL, rl=RL, output=OutputConfig(save_every=1, log_every=1))


@functools.cache
def words() -> Tokenizer:
    return train_bpe([CHARACTERS], 260)


@functools.cache
def params(seed: int = 0) -> transformer.TransformerParams:
    """Weights under which every digit, and the end, is about as likely as any other id."""
    return transformer.init(MODEL, jax.random.key(seed))


def asked(count: int = 3, seed: int = 0, level: int = LEVEL) -> list[Problem]:
    stream = problems(catalog.find("sum"), level, "train", seed)
    return [problem for problem, _ in zip(stream, range(count))]


@functools.cache
def engine(slots: int = 12) -> Engine:
    rows = dataclasses.replace(RL, prompts=slots // RL.samples)
    return weights.open_engine(dataclasses.replace(RUN, rl=rows), params(), words(),
                               weights.Places(None, None, ParallelConfig()))

LEARNS = RunConfig(
    name="learns",
    model=dataclasses.replace(MODEL, layers=2, init_std=0.15),
    train=TrainConfig(steps=150, batch_size=8, seq_len=64),
    learning_rate=LearningRate(peak=5e-3, warmup_steps=10, constant_steps=150),
    loss=LossConfig(balance=0.01, bias_speed=0.01),
    data=DataConfig(packing="segments", heldout_fraction=0.02),
    output=OutputConfig(save_every=1, keep=9),
    rl=RLConfig(steps=4, prompts=8, samples=4, updates=2, level=3, max_prompt_tokens=6,
                max_new_tokens=10, learning_rate=1e-3, kl_weight=0.01, reference_every=2,
                samples_every=1, eval_every=0, eval_prompts=16, pass_samples=4, base_right=0.0))
"""A run from nothing whose base learns the form of an answer, so that some groups are not equal."""


def teach(run: RunConfig, folder: Path) -> str:
    """Run or go on in a folder; what was said."""
    told = io.StringIO()
    loop.reinforce(dataclasses.replace(
        run, output=dataclasses.replace(run.output, folder=str(folder))), Console(file=told))
    return told.getvalue()


def with_rl(**fields: Any) -> RunConfig:
    return dataclasses.replace(LEARNS, rl=dataclasses.replace(LEARNS.rl, **fields))


def told_of(folder: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """Numbers of a run but for the clock's, and the outputs that were written."""
    events = numbers(metrics.read_metrics(folder / "metrics.jsonl"))
    return events, [path.read_text() for path in sorted((folder / "samples").iterdir())]
