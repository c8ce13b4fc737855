"""Train in float32, bfloat16 and FP8, and in FP8 with one ingredient taken out; compare the losses.

Every arm reads the same batches from the same start values. Runs are killed and started again at
will: finished arms are read from their records, an unfinished one goes on from its checkpoint.
Started twice, the two processes share the arms, and the last to finish writes table and figure.

Each config is trained twice: with its own batch of 2,048 tokens at V3's peak rate, and with smaller
batches at 3e-4, where chaos shows more than rounding does. How much of it, is an arm of its own
(`bf16_reordered`), which differs from bfloat16 in nothing but the order of float32 sums. The
router's bias moves at V3's speed of 0.001. Ablations are half as long, of small batches.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from configs import small, tiny
from dsjax.config.machine import MachineConfig
from dsjax.config.run import OutputConfig, RunConfig, TrainConfig
from dsjax.config.schedule import LearningRate
from dsjax.numerics import precision as numerics
from experiments.common import arms
from experiments.common.arms import Arm
from experiments.common.command import Asked
from experiments.fp8_vs_bf16 import ingredients, report

SEEDS = (0, 1, 2)
PRECISIONS = {"bf16": "bfloat16", "fp8": "FP8 as V3", "fp32": "float32"}
WITHOUT = {
    "per_tensor": ("one scale a tensor instead of tiles", ingredients.PER_TENSOR),
    "e5m2_gradients": ("gradients in E5M2 instead of E4M3", ingredients.E5M2_GRADIENTS),
    "block_gradients": ("gradients of activations in 128x128 blocks instead of 1x128 tiles",
                        ingredients.BLOCK_GRADIENTS),
    "no_promotion": ("sums in 14-bit registers, never promoted", ingredients.registers(None)),
}


def base(config: RunConfig, train: TrainConfig, peak: float) -> RunConfig:
    """A config with its batches and steps, at a constant rate after a warm-up."""
    return dataclasses.replace(
        config,
        train=train,
        learning_rate=LearningRate(peak=peak, warmup_steps=report.WARMUP,
                                   constant_steps=train.steps),
        loss=dataclasses.replace(config.loss, bias_speed=0.001),
        optimizer=dataclasses.replace(config.optimizer, ema_decay=0.0),
        machine=MachineConfig(unroll=config.model.layers),
        output=OutputConfig(eval_every=report.EVALUATED, eval_batches=0, save_every=250, keep=1,
                            log_every=100),
    )


def with_(run: RunConfig, precision: str, seed: int) -> RunConfig:
    """The run in a precision, from a seed."""
    return dataclasses.replace(run, seed=seed,
                               precision=dataclasses.replace(run.precision, matmul=precision))


def all_arms() -> list[Arm]:
    """Every arm, those that answer the question first."""
    def of(run: RunConfig, seeds: Sequence[int], names: Sequence[str]) -> list[Arm]:
        return [Arm(name, PRECISIONS[name], with_(run, name, seed))
                for seed in seeds for name in names]

    small_run = base(small.config(), TrainConfig(steps=1000, batch_size=4, seq_len=512), 2.2e-4)
    tiny_run = base(tiny.config(), TrainConfig(steps=2000, batch_size=8, seq_len=256), 2.2e-4)
    noisy_small = base(small.config(), TrainConfig(steps=1000, batch_size=2, seq_len=256), 3e-4)
    noisy_tiny = base(tiny.config(), TrainConfig(steps=2000, batch_size=4, seq_len=256), 3e-4)
    half = base(tiny.config(), TrainConfig(steps=1000, batch_size=4, seq_len=256), 3e-4)
    made = [arm for names in (("bf16", "fp8"), ("fp32",)) for run, seeds in
            ((small_run, (0,)), (tiny_run, SEEDS)) for arm in of(run, seeds, names)]
    made += of(noisy_tiny, SEEDS, tuple(PRECISIONS)) + of(noisy_small, (0,), tuple(PRECISIONS))
    ablations = [Arm(f"fp8_{name}", f"FP8, {change}", with_(half, "fp8", 0),
                     ingredients.backend(held)) for name, (change, held) in WITHOUT.items()]
    reordered = dataclasses.replace(ingredients.backend(numerics.BF16), loss_chunk=64)
    controls = [Arm("bf16_reordered", "bfloat16, float32 sums of the loss in another order",
                    with_(run, "bf16", seed), reordered)
                for run, seed in [(noisy_tiny, 1), *((tiny_run, seed) for seed in (1, 0, 2))]]
    return [*made, *ablations, *controls]


def quick_arms() -> list[Arm]:
    """Two arms on two layers, small batches and few steps: most of the time goes into compiling."""
    config = tiny.config()
    model = dataclasses.replace(config.model, layers=2, mtp_depth=0)
    run = base(dataclasses.replace(config, model=model),
               TrainConfig(steps=report.WARMUP + 20, batch_size=1, seq_len=32), 2.2e-4)
    run = dataclasses.replace(
        run, machine=MachineConfig(),
        output=dataclasses.replace(run.output, eval_every=0, eval_batches=2, save_every=0))
    return [Arm(name, PRECISIONS[name], with_(run, name, 0)) for name in ("bf16", "fp8")]


def main(asked: Asked) -> int:
    """Train what is not yet recorded, then write the table and the figure."""
    wanted = quick_arms() if asked.is_quick else all_arms()
    runs = Path(asked.values["runs"] or asked.runs)
    if not asked.is_redraw:
        status, left = arms.train_all(wanted, asked.records, runs, asked.command)
        if status or left:
            return status
    found, missing = arms.kept(wanted, asked.records)
    report.write(asked, found, missing)
    return 0
