"""`dsjax bench`: the speed of training and inference on this machine, as one JSON line.

Two fixed shapes without multi-token prediction: the loss over whole rows, AdamW over every
parameter, nothing rematerialized, random tokens from a seed. Useful FLOPs are counted by hand from
the shape (forward and backward products, causal scores and values; recomputation, routing, softmax,
norms and the optimizer are not counted), and `mfu` is their rate over the best matmul rate measured
in the same process, with operands of the same dtype.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

from dsjax.cli.benches import gemm, inference, layouts
from dsjax.cli.benches.gemm import Gemm
from dsjax.cli.benches.inference import Decode, Inference, Prefill, Serve
from dsjax.cli.benches.layouts import Layouts, Links
from dsjax.cli.benches.shapes import PRECISION, Bench, peak_rss, result, shape_run
from dsjax.cli.process import devices
from dsjax.config.model import MLAConfig
from dsjax.config.run import RunConfig
from dsjax.disk import to_json


class Train(Bench):
    """Time training steps and print one JSON line.

    tok_s (median), tok_per_cpu_s, ms_median, gflop_s, mfu, compile_s, peak_rss_mib, versions and
    the load average. Programs are compiled anew, so that compile_s is a compilation's.
    """


def main(args: Train | Decode | Prefill | Serve | Gemm | Layouts | Links) -> int:
    """Measure and print; returns the exit status."""
    if isinstance(args, Gemm):
        return gemm.measure(args)
    if isinstance(args, Layouts):
        return layouts.compare(args)
    if isinstance(args, Links):
        return layouts.count(args)
    devices.require()
    found = inference.measure(args) if isinstance(args, Inference) else train(args)
    print(to_json(found), flush=True)
    return 0


def train(args: Bench) -> dict[str, Any]:
    """Time whole optimizer steps, each until its new state is ready."""
    from dsjax.runtime import cpu, fit, needs

    cpu.dispatch_inline()
    run_config = shape_run(args)
    rows, length = run_config.train.batch_size, run_config.train.seq_len
    with fit.refusing(f"a step on {rows:,} rows of {length:,} tokens",
                      needs.training(run_config).parts, "lower --batch-size or --seq-len"):
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
    return result("train", args, rows, length) | _pace(wall, cpu, rows * length) | {
        "gflop_s": round(flops / statistics.median(wall) / 1e9, 1),
        "mfu": round(peak.share(flops / statistics.median(wall)), 4),
        "peak_gflop_s": round(peak.flop_s / 1e9, 1),
        "trace_s": round(trace_s, 2),
        "compile_s": round(compile_s, 2),
        "peak_rss_mib": peak_rss(),
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
