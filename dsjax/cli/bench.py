"""`dsjax bench`: the speed of training and decoding on this machine, as one JSON line.

Two fixed shapes without multi-token prediction: the loss over whole rows, AdamW over every
parameter, nothing rematerialized, random tokens from a seed. Useful FLOPs are counted by hand from
the shape (forward and backward products, causal scores and values; recomputation, routing, softmax,
norms and the optimizer are not counted), and `mfu` is their rate over the best matmul rate measured
in the same process, with operands of the same dtype.
"""

from __future__ import annotations

import dataclasses
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from dsjax.cli.benches import gemm, layouts
from dsjax.cli.benches.gemm import Gemm
from dsjax.cli.benches.layouts import Layouts, Links
from dsjax.cli.process import devices
from dsjax.config import load
from dsjax.config.fields import counted, seed_in_range
from dsjax.config.model import MLAConfig
from dsjax.config.run import MachineConfig, PrecisionConfig, RunConfig, TrainConfig
from dsjax.config.schedule import LearningRate
from dsjax.disk import to_json

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
    """tiny: 8.2M parameters, 8 x 256 tokens; small: 108M, 4 x 512."""
    dtype: Literal["float32", "bfloat16", "fp8"] = "float32"
    """Operands of matrix products; sums are float32."""
    steps: int | None = None
    """Steps that are timed, or new tokens a row."""
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


class Train(Bench):
    """Time training steps and print one JSON line.

    tok_s (median), tok_per_cpu_s, ms_median, gflop_s, mfu, compile_s, peak_rss_mib, versions and
    the load average. Programs are compiled anew, so that compile_s is a compilation's.
    """


class Decode(Bench):
    """Time greedy decoding from a latent cache and print one JSON line."""


def main(args: Train | Decode | Gemm | Layouts | Links) -> int:
    """Measure and print; returns the exit status."""
    if isinstance(args, Gemm):
        return gemm.measure(args)
    if isinstance(args, Layouts):
        return layouts.compare(args)
    if isinstance(args, Links):
        return layouts.count(args)
    devices.require()
    print(to_json(train(args) if isinstance(args, Train) else decode(args)), flush=True)
    return 0


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


def train(args: Bench) -> dict[str, Any]:
    """Time whole optimizer steps, each until its new state is ready."""
    from dsjax.runtime import cpu, fit, needs

    cpu.dispatch_inline()
    run_config = shape_run(args)
    rows, length = run_config.train.batch_size, run_config.train.seq_len
    with fit.refusing(f"a step on {rows:,} rows of {length:,} tokens",
                      needs.training(run_config).at_once, "lower --batch-size or --seq-len"):
        return _train(args, run_config)


def _train(args: Bench, run_config: RunConfig) -> dict[str, Any]:
    """Compile, run and time."""
    import jax
    import jax.numpy as jnp

    from dsjax.model.loss import Batch
    from dsjax.params import key_of
    from dsjax.runtime import backend as backends
    from dsjax.runtime import cpu as host
    from dsjax.runtime import hardware, header
    from dsjax.train import state, step

    rows, length = run_config.train.batch_size, run_config.train.seq_len
    backend = backends.for_run(run_config)
    key = key_of(args.seed)
    tokens = jax.random.randint(key, (rows, length + 1), 0, run_config.model.vocab)
    batch = Batch(tokens, jnp.ones_like(tokens), jnp.ones(tokens.shape, jnp.float32))
    held = jax.jit(lambda k: state.init(run_config, k))(key)
    began = time.perf_counter()
    lowered = jax.jit(step.make_train_step(run_config, backend), donate_argnums=0).lower(
        held, batch)
    trace_s, began = time.perf_counter() - began, time.perf_counter()
    compiled = lowered.compile()
    compile_s = time.perf_counter() - began
    host.release_memory()

    def one() -> None:
        nonlocal held
        held, _ = compiled(held, batch)
        jax.block_until_ready(held)

    one()
    host.keep_memory()
    wall, cpu = _timed(one, args.steps or 20)
    peak = hardware.matmul_peak(hardware.OPERANDS[PRECISION[args.dtype]])
    flops = train_flops(run_config)
    return _result("train", args, rows, length) | _pace(wall, cpu, rows * length) | {
        "gflop_s": round(flops / statistics.median(wall) / 1e9, 1),
        "mfu": round(peak.share(flops / statistics.median(wall)), 4),
        "peak_gflop_s": round(peak.flop_s / 1e9, 1),
        "trace_s": round(trace_s, 2),
        "compile_s": round(compile_s, 2),
        "peak_rss_mib": _peak_rss(),
        "versions": header.versions(),
    }


def decode(args: Bench) -> dict[str, Any]:
    """Time greedy decoding from a latent cache of `seq` tokens."""

    from dsjax.infer.bench import Load, decode_bench
    from dsjax.model import transformer
    from dsjax.params import key_of
    from dsjax.runtime import backend as backends
    from dsjax.runtime import header

    run_config = shape_run(args)
    params = transformer.init(run_config.model, key_of(args.seed))
    batch, context = args.batch_size or 1, args.seq_len or 512
    backend = backends.decoding(backends.for_run(run_config))
    found = decode_bench(params, run_config.model, Load(batch, context, args.steps or 64), backend)
    return _result("decode", args, batch, context) | found | {
        "peak_rss_mib": _peak_rss(),
        "versions": header.versions(),
    }


def train_flops(run: RunConfig) -> float:
    """Useful FLOPs of one step: thrice the forward products, scores and values causal."""
    from dsjax.model.count import count

    a = run.model.attention
    assert isinstance(a, MLAConfig), "the benchmark's shapes have latent attention"
    skipped = ("embedding", "norms", "router biases")
    matmuls = sum(p.params_active for p in count(run.model).parts if p.name not in skipped)
    matmuls -= run.model.layers * (a.kv_rank + (a.q_rank or 0))  # the latents' norms
    tokens = run.train.batch_size * run.train.seq_len
    pairs = run.train.batch_size * run.train.seq_len * (run.train.seq_len + 1) // 2
    attention = run.model.layers * a.heads * (a.qk_dim + a.value_dim) * pairs
    return 3.0 * 2.0 * (matmuls * tokens + attention)


def _timed(one: Callable[[], None], steps: int) -> tuple[list[float], list[float]]:
    """Wall and CPU seconds of each step after two that are not counted."""
    wall, cpu = [], []
    for i in range(steps + 2):
        c, w = time.process_time(), time.perf_counter()
        one()
        if i >= 2:
            wall.append(time.perf_counter() - w)
            cpu.append(time.process_time() - c)
    return wall, cpu


def _pace(wall: list[float], cpu: list[float], tokens: int) -> dict[str, Any]:
    return {
        "steps": len(wall),
        "tok_s": round(tokens / statistics.median(wall), 1),
        "tok_s_best": round(tokens / min(wall), 1),
        "tok_per_cpu_s": round(tokens / statistics.median(cpu), 1),
        "ms_median": round(statistics.median(wall) * 1e3, 2),
        "ms_min": round(min(wall) * 1e3, 2),
        "ms_max": round(max(wall) * 1e3, 2),
    }


def _result(mode: str, args: Bench, batch: int, seq: int) -> dict[str, Any]:
    return {"mode": mode, "shape": args.shape, "dtype": args.dtype, "batch": batch, "seq": seq,
            "seed": args.seed, "load1": round(os.getloadavg()[0], 2)}


def _peak_rss() -> float:
    """Peak resident memory of this process in MiB."""
    import resource

    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)
