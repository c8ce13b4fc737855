"""Whole programs on a card: a step against the CPU's, training and decoding at one shape, a start.

The shape has 2.6 billion parameters: 12 layers of 2,048 with 32 experts of 1,024, 6 of them chosen.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from dsjax.cli.bench import train_flops
from dsjax.config import load
from dsjax.config.machine import MachineConfig
from dsjax.config.model import MLAConfig, ModelConfig, MoEConfig
from dsjax.config.run import PrecisionConfig, RunConfig, TrainConfig
from dsjax.config.schedule import LearningRate
from dsjax.infer.bench import Load, decode_bench
from dsjax.infer.model import Model
from dsjax.model import transformer
from dsjax.model.loss import Batch
from dsjax.runtime import attention, backend
from dsjax.train import state, step
from experiments.common import record
from experiments.gpu.blocks import Row, at_most, seconds

FORMS: dict[str, tuple[str, MachineConfig]] = {
    "bf16": ("bf16", MachineConfig()),
    "bf16, attention in blocks": ("bf16", MachineConfig(attention="blocks")),
    "bf16, layers in a scan": ("bf16", MachineConfig(unroll=1)),
    "fp8": ("fp8", MachineConfig()),
}
"""Each differs from the first in one choice."""


def large() -> ModelConfig:
    """The shape of 2.6 billion parameters."""
    return ModelConfig(
        vocab=32768, d_model=2048, layers=12, dense_layers=1, dense_dim=6144, mtp_depth=0,
        init_std=0.02,
        attention=MLAConfig(heads=16, q_rank=768, kv_rank=512, nope_dim=128, rope_dim=64,
                            value_dim=128),
        moe=MoEConfig(experts=32, experts_per_token=6, expert_dim=1024, shared_experts=1,
                      groups=4, groups_per_token=2, scale=2.5))


def small() -> ModelConfig:
    """Two layers of `tiny`, for a CPU."""
    model = load.load("tiny").model
    return dataclasses.replace(model, layers=2, mtp_depth=0)


def _run(model: ModelConfig, rows: int, length: int, matmul: Any,
         machine: MachineConfig) -> RunConfig:
    numerics = PrecisionConfig(matmul, "float32" if matmul == "fp32" else "bfloat16")
    return RunConfig(name="card", model=model, precision=numerics, machine=machine,
                     train=TrainConfig(batch_size=rows, seq_len=length),
                     learning_rate=LearningRate(peak=1e-4, constant_steps=1000))


def _batch(run: RunConfig) -> Batch:
    shape = (run.train.batch_size, run.train.seq_len + 1)
    tokens = np.random.default_rng(0).integers(0, run.model.vocab, shape)
    return Batch(jnp.asarray(tokens, jnp.int32), jnp.ones(shape, jnp.int32),
                 jnp.ones(shape, jnp.float32))


def exactness(is_small: bool) -> Iterator[Row]:
    """One float32 step of a tiny model here and on the CPU; equal but for the order of sums."""
    run = _run(small(), 2, 64 if is_small else 256, "fp32", MachineConfig(unroll=1))
    host, here = jax.devices("cpu")[0], jax.devices()[0]
    with jax.default_device(host):
        start, batch = jax.jit(lambda key: state.init(run, key))(jax.random.key(0)), _batch(run)
    found = []
    for device in (host, here):
        made = jax.jit(step.make_train_step(run, backend.for_run(run, device=device)))
        found.append(made(*jax.device_put((start, batch), device))[1])
    for name, bound in (("next_token", 1e-6), ("grad_norm", 1e-5)):
        cpu, mine = (float(getattr(one, name)) for one in found)
        yield at_most("exactness", f"fp32 {name} beside the CPU's", abs(mine / cpu - 1),
                      "relative", bound)


def training(is_small: bool) -> Iterator[Row]:
    """A step in each form: its first loss beside the first form's, and its time."""
    model, rows, length = (small(), 2, 64) if is_small else (large(), 8, 2048)
    first = None
    for name, (matmul, machine) in FORMS.items():
        if is_small and machine != MachineConfig():
            continue  # without a GPU they are the first form
        run = _run(model, rows, length, matmul, machine)
        chosen = backend.for_run(run)
        batch = _batch(run)
        held = jax.jit(lambda key, run=run: state.init(run, key))(jax.random.key(0))
        began = time.perf_counter()
        made = jax.jit(step.make_train_step(run, chosen), donate_argnums=0).lower(
            held, batch).compile()
        compile_s = time.perf_counter() - began
        held, metrics = made(held, batch)
        loss = float(metrics.next_token)
        first = loss if first is None else first
        # bfloat16 sums in another order, and codes of 4 significant bits, move a loss so far
        yield at_most("step", f"{name}, loss beside the first form's", abs(loss / first - 1),
                      "relative", 1e-3)
        if not is_small:
            taken = _step_seconds(made, held, batch)
            yield Row("step", f"{name}, {attention.form(machine, True, jax.devices()[0])}, "
                      f"{chosen.unroll} layers at once", 1e3 * taken, "ms")
            yield Row("step", f"{name}, useful", train_flops(run) / taken / 1e12, "TFLOP/s")
            yield Row("step", f"{name}, compiling", compile_s, "s")
        del held, made


def _step_seconds(made: Any, held: Any, batch: Batch) -> float:
    def one() -> Any:
        nonlocal held
        held, metrics = made(held, batch)
        return metrics

    return seconds(one, calls=3, rounds=3)


def decoding(is_small: bool) -> Iterator[Row]:
    """A greedy token of each row, on one device, by the size of the batch."""
    cfg = small() if is_small else large()
    numerics = PrecisionConfig("bf16", "bfloat16")
    params = jax.jit(lambda key: transformer.init(cfg, key))(jax.random.key(0))
    for rows in (1,) if is_small else (1, 16, 64):
        model = Model(cfg, params, cast(Any, None), 4096, backend.for_decoding(cfg, numerics),
                      None)
        load = Load(rows, 16, 2, 1) if is_small else Load(rows, 512, 64, 3)
        found = decode_bench(model, load)
        if is_small:
            yield at_most("decoding", f"batch {rows}, tokens a pass beside one",
                          abs(found["tokens_per_pass"] - 1), "relative", 0.0)
        else:
            yield Row("decoding", f"batch {rows}", found["ms_per_step"], "ms a step")


def start(is_small: bool) -> Iterator[Row]:
    """One step of `dsjax train tiny` in a process of its own, without and with kept programs."""
    if is_small or importlib.util.find_spec("grain") is None:
        yield Row("start", "not measured", "small" if is_small else "grain is not installed", "")
        return
    with tempfile.TemporaryDirectory() as folder:
        cache = {"XDG_CACHE_HOME": folder, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
        for name in ("cold", "warm"):
            began = time.perf_counter()
            subprocess.run(
                [sys.executable, "-m", "dsjax", "train", "tiny", "--train.steps", "2",
                 "--output.folder", f"{folder}/{name}"],
                check=True, capture_output=True, cwd=record.ROOT, env=os.environ | cache)
            yield Row("start", f"train tiny, 2 steps, {name}", time.perf_counter() - began, "s")
