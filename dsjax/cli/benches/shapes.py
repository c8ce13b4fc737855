"""The two fixed shapes that `dsjax bench` measures, and what every line it prints has."""

from __future__ import annotations

import dataclasses
import os
import resource
from dataclasses import dataclass
from typing import Any, Literal

from dsjax.config import load
from dsjax.config.fields import counted, seed_in_range
from dsjax.config.machine import MachineConfig
from dsjax.config.run import PrecisionConfig, RunConfig, TrainConfig
from dsjax.config.schedule import LearningRate

ROWS = {"tiny": (8, 256), "small": (4, 512)}
PRECISION: dict[str, Literal["fp32", "bf16", "fp8"]] = {
    "float32": "fp32",
    "bfloat16": "bf16",
    "fp8": "fp8",
}


@dataclass(frozen=True)
class Bench:
    """Shape, numbers and size of a measurement; None is the mode's own default."""

    shape: Literal["tiny", "small"] = "tiny"
    """tiny: 8.2M parameters, 8 x 256 tokens; small: 108M, 4 x 512; without their MTP modules."""
    dtype: Literal["float32", "bfloat16", "fp8"] = "float32"
    """Operands of matrix products; sums are float32."""
    steps: int | None = None
    """Steps that are timed, 20 by default; decoding, new tokens a row, 64."""
    batch_size: int | None = None
    """Rows; by default the shape's, and one when decoding."""
    seq_len: int | None = None
    """Tokens a row; by default the shape's, and 512 in the cache when decoding."""
    seed: int = 0
    """Seed of parameters and tokens."""

    def __post_init__(self) -> None:
        """Refuse sizes of nothing."""
        counted(type(self).__name__, **{
            name: value for name in ("steps", "batch_size", "seq_len")
            if (value := getattr(self, name)) is not None})
        seed_in_range(self.seed, f"{type(self).__name__}.seed=")


def shape_run(args: Bench) -> RunConfig:
    """The run of a shape: its config without MTP, one microbatch, nothing rematerialized."""
    batch, length = ROWS[args.shape]
    model = dataclasses.replace(load.load(args.shape).model, mtp_depth=0)
    return RunConfig(
        name=args.shape,
        model=model,
        train=TrainConfig(
            batch_size=args.batch_size or batch,
            seq_len=args.seq_len or length,
        ),
        precision=PrecisionConfig(matmul=PRECISION[args.dtype]),
        learning_rate=LearningRate(peak=1e-4, constant_steps=1000),
        machine=MachineConfig(remat="none", unroll=model.layers),
        seed=args.seed,
    )


def result(mode: str, args: Bench, batch: int, seq: int) -> dict[str, Any]:
    """The first keys of a line: mode, shape, numbers, rows, tokens of a row, seed, load average."""
    return {"mode": mode, "shape": args.shape, "dtype": args.dtype, "batch": batch, "seq": seq,
            "seed": args.seed, "load1": round(os.getloadavg()[0], 2)}


def peak_rss() -> float:
    """Peak resident memory of this process in MiB."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)
