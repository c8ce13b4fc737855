"""Three runs of a small model, each from the one before: 128 tokens, then 1,024, then 4,096.

YaRN, lengths and rates are those of `configs/tiny_long.py`; the model is smaller than `tiny`, dense
and without MTP, as only attention knows of positions and time is short. Loss by position is of the
plays that were left out, over texts as long as the last phase's rows.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from configs import tiny, tiny_long
from dsjax import infer
from dsjax.config.machine import MachineConfig
from dsjax.config.model import MLAConfig, ModelConfig, RopeConfig
from dsjax.config.run import (
    DataConfig,
    OptimizerConfig,
    OutputConfig,
    PrecisionConfig,
    RunConfig,
    TrainConfig,
)
from dsjax.config.schedule import LearningRate
from dsjax.evaluate import measures
from dsjax.evaluate.likelihood import Scorer, Text
from dsjax.infer import Model
from dsjax.train import loop
from experiments.common.command import Asked
from experiments.long_context import text

LONGEST = tiny_long.SECOND
EDGES = (0, 64, 128, 256, 512, 1024, 2048)
"""Positions at which ranges of the loss begin; the last ends with the texts."""
TEXTS = 12


@dataclass(frozen=True)
class Phase:
    """One run."""

    name: str
    length: int
    rows: int
    steps: int
    peak: float
    documents: int
    times: int
    """Sayings of a code in a document, which is as long as a row."""


PHASES = (
    Phase("128", tiny_long.ORIGINAL, 16, 1000, 3e-3, 24_000, 3),
    Phase("1k", tiny_long.FIRST, 8, 80, 3e-4, 1200, 8),
    Phase("4k", tiny_long.SECOND, 2, 80, 3e-4, 300, 16),
)
QUICK_STEPS = 4
COLUMNS = ("model", "trained on, tokens", "steps", *(
    f"{a:,} to {b:,}" for a, b in zip(EDGES, [*EDGES[1:], LONGEST], strict=True)))


def main(asked: Asked) -> None:
    """Train the phases, score texts by position and write the record."""
    folders = trained(asked.runs, asked.is_quick)
    rows, nats = [], {}
    for name, model, phase in arms(folders):
        found = by_position(model, *((2, 512) if asked.is_quick else (TEXTS, LONGEST)))
        nats[name] = [round(one, 4) for one in found]
        steps = QUICK_STEPS if asked.is_quick else phase.steps
        rows.append([name, f"{phase.length:,}", f"{steps:,}", *(f"{n:.2f}" for n in found)])
        print(*rows[-1], flush=True)
    asked.write("phases", f"nats a token of plays that were not read, by position in texts of "
                f"{LONGEST:,} tokens", COLUMNS, rows, nats=nats,
                read={p.name: (QUICK_STEPS if asked.is_quick else p.steps) * p.rows * p.length
                      for p in PHASES})


def model_config(is_stretched: bool) -> ModelConfig:
    """Latent attention as `tiny`'s in two dense layers."""
    return ModelConfig(
        vocab=512, d_model=128, layers=2, dense_layers=2, dense_dim=192, init_std=0.08,
        attention=MLAConfig(heads=4, q_rank=64, kv_rank=32, nope_dim=16, rope_dim=16,
                            value_dim=16),
        rope=RopeConfig(yarn=tiny_long.YARN if is_stretched else None))


def config(phase: Phase, folder: Path, before: Path | None, is_quick: bool) -> RunConfig:
    """The run of a phase; writes its text."""
    count = max(phase.documents // 20, 40) if is_quick else phase.documents
    path = folder.with_suffix(".jsonl")
    text.write(path, text.documents(phase.length, count, phase.length, phase.times))
    rate = LearningRate(peak=phase.peak, low=phase.peak, last=phase.peak)
    if before is None:  # as `tiny`'s, down to the rate that the phases go on with
        rate = LearningRate(peak=phase.peak, low=PHASES[1].peak, last=PHASES[1].peak,
                            warmup_steps=0.03, constant_steps=0.67, cosine_steps=0.3)
    return dataclasses.replace(
        tiny.config(), name=folder.name, model=model_config(before is not None),
        train=TrainConfig(steps=QUICK_STEPS if is_quick else phase.steps, batch_size=phase.rows,
                          seq_len=phase.length),
        data=DataConfig(train=str(path), heldout_fraction=0.01, packing="segments"),
        precision=PrecisionConfig("fp32"), learning_rate=rate, optimizer=OptimizerConfig(),
        machine=MachineConfig(), init_from=None if before is None else str(before),
        output=OutputConfig(folder=str(folder), eval_every=0, eval_batches=4, save_every=200,
                            log_every=20))


def trained(runs: Path, is_quick: bool) -> list[Path]:
    """Folders of the three runs; those that are finished stay as they are."""
    folders: list[Path] = []
    for phase in PHASES:
        folder = runs / phase.name
        before = folders[-1] if folders else None
        if not loop.train(config(phase, folder, before, is_quick)).is_complete:
            raise KeyboardInterrupt
        folders.append(folder)
    return folders


def arms(folders: Sequence[Path]) -> list[tuple[str, Model, Phase]]:
    """Models to compare: as trained first, stretched without training, and after each phase."""
    first, *later = [infer.load(folder) for folder in folders]
    stretched = dataclasses.replace(first, cfg=model_config(is_stretched=True))
    return [("128", first, PHASES[0]), ("128, YaRN switched on", stretched, PHASES[0]),
            *((f"after {phase.length:,}", model, phase)
              for phase, model in zip(PHASES[1:], later, strict=True))]


def heldout(model: Model) -> list[int]:
    """Ids of the plays that were left out."""
    return model.tokenizer.encode("\n".join(text.plays()[1]))


def by_position(model: Model, count: int, length: int) -> list[float]:
    """Nats a token in each range of positions; not a number where texts are shorter."""
    ids = heldout(model)
    starts = np.linspace(0, len(ids) - length, count).astype(int)
    texts = [Text((model.tokenizer.end_id,), tuple(ids[start : start + length]))
             for start in starts]
    scores = Scorer(model, context=length)(texts)
    return [math.log(one.value) if one.count else math.nan
            for one in measures.by_position(scores, [0] * count, EDGES)]
