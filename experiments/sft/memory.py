"""Bytes that tuning a model of 16B takes on one device, by part and by the way it is tuned.

Nothing is allocated. A row of 4,096 tokens at a time, bfloat16 products, layers made again. Tests
hold the counts of weights, masters, moments and gradients to the bytes of live arrays.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from dsjax.config.load import load
from dsjax.config.machine import MachineConfig
from dsjax.config.run import PrecisionConfig, RunConfig
from dsjax.config.sft import ExpertsConfig, LoRAConfig, written
from dsjax.train.tuning import plan
from experiments.common.command import Asked

MODELS = ("moonlight_16b_a3b", "deepseek_v2_lite")
CARD = 24e9
LENGTH = 4096
COLUMNS = ("model", "what learns", "frozen weights", "masters", "moments", "gradients",
           "activations", "decoded experts", "logits", "in all, GB", "in 24 GB")


def ways(run: RunConfig) -> dict[str, dict[str, Any]]:
    """Ways to tune a model."""
    moe = run.model.moe
    assert moe is not None, "the models of this experiment are mixtures"
    layers = range(run.model.dense_layers, run.model.layers)

    def some(count: int) -> str:
        return written({at: tuple(range(count)) for at in layers})

    return {
        "all of it": {},
        "adapters of rank 16, base in bfloat16": {"lora": LoRAConfig(base="bfloat16")},
        "adapters of rank 16, base in FP8": {"lora": LoRAConfig(base="fp8")},
        "adapters of rank 64, base in FP8": {"lora": LoRAConfig(rank=64, base="fp8")},
        f"one of {moe.experts} experts a layer, base in FP8": {
            "experts": ExpertsConfig(chosen=some(1), base="fp8")},
        f"six of {moe.experts} experts a layer, base in FP8": {
            "experts": ExpertsConfig(chosen=some(6), base="fp8")},
    }


def configured(name: str) -> RunConfig:
    """A model's run with one row at a time, layers made again."""
    run = load(name)
    model = dataclasses.replace(run.model, mtp_depth=0)
    train = dataclasses.replace(run.train, batch_size=8, microbatches=8, seq_len=LENGTH,
                                steps=1000, batch_size_start=None, curriculum=())
    return dataclasses.replace(run, model=model, train=train, init_from=name,
                               machine=MachineConfig(remat="full"),
                               precision=PrecisionConfig("bf16", "bfloat16"))


def main(asked: Asked) -> None:
    """Count and write the record."""
    rows, measured = [], []
    for name in MODELS[:1] if asked.is_quick else MODELS:
        run = configured(name)
        for way, fields in ways(run).items():
            found = plan.count(dataclasses.replace(run, **fields))
            parts = dataclasses.asdict(found)
            rows.append([name, way, *(f"{size / 1e9:.2f}" for size in parts.values()),
                         f"{found.total / 1e9:.1f}", "yes" if found.total <= CARD else "no"])
            measured.append({"model": name, "way": way, **parts, "total": found.total})
            print(*rows[-1], flush=True)
    asked.write("memory", "adapters beside weights in FP8 tune a 16B mixture within 24 GB; all of "
                "it, a base in bfloat16, or six experts a layer do not", COLUMNS, rows,
                unit="GB of one device", rows_measured=measured)
