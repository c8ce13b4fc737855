"""Largest memory of a process that tunes a small mixture, beside its share of a card's.

24 GB are so many bytes for each number of a model of 16B; the small model gets as many for each of
its own. It has 108 narrow layers, so that one layer is a small part of it, as in the large one.
The step is compiled first; then the kernel's mark of the largest memory is set back, random weights
are laid down, and some steps are taken. Each way has a process of its own.
"""

from __future__ import annotations

import ctypes
import dataclasses
import gc
import math
import multiprocessing
import resource
from pathlib import Path
from typing import Any

from dsjax.config.loss import LossConfig
from dsjax.config.machine import MachineConfig
from dsjax.config.model import MLAConfig, ModelConfig, MoEConfig
from dsjax.config.run import RunConfig, TrainConfig
from dsjax.config.schedule import LearningRate
from dsjax.config.sft import LoRAConfig, Resting
from experiments.common.command import Asked
from experiments.sft import memory

STEPS = 4
ALIGNMENT = 64
COLUMNS = ("base", "millions of numbers", "that learn", "MB counted", "MB measured",
           "MB that 24 GB are in proportion", "within", "loss, first to last step")


def configured(base: Resting, layers: int = 108, length: int = 256) -> RunConfig:
    """The small mixture, in float32, as a CPU multiplies."""
    return RunConfig(
        "cap",
        ModelConfig(vocab=8192, d_model=256, layers=layers, dense_layers=1, dense_dim=704,
                    attention=MLAConfig(heads=4, kv_rank=64, nope_dim=64, rope_dim=32,
                                        value_dim=64),
                    moe=MoEConfig(experts=32, experts_per_token=3, expert_dim=176)),
        TrainConfig(steps=STEPS, batch_size=1, seq_len=length),
        learning_rate=LearningRate(peak=1e-3, constant_steps=STEPS),
        loss=LossConfig(balance=0.0, bias_speed=0.0), init_from="random weights",
        lora=LoRAConfig(rank=4, base=base), machine=MachineConfig(remat="full"))


def main(asked: Asked) -> None:
    """Measure and write the record."""
    from dsjax.model import count
    from dsjax.train.tuning import plan

    large = count.count(memory.configured(memory.MODELS[0]).model).params_total
    a_number = memory.CARD / large
    rows, measured = [], []
    start = multiprocessing.get_context("spawn")
    forms: tuple[Resting, ...] = ("fp8", "bfloat16")
    for base in forms:
        run = configured(base, 6, 64) if asked.is_quick else configured(base)
        small = count.count(run.model).params_total
        with start.Pool(1) as alone:
            found = alone.apply(measure, (run,))
        counted, cap = plan.count(run), a_number * small
        rows.append([base, f"{small / 1e6:.1f}", f"{counted.masters / 4e6:.2f}",
                     f"{counted.total / 1e6:.0f}", f"{found['own'] / 1e6:.0f}",
                     f"{cap / 1e6:.0f}", "yes" if found["own"] <= cap else "no",
                     f"{found['losses'][0]:.3f} to {found['losses'][-1]:.3f}"])
        measured.append(found | dataclasses.asdict(counted) | {"base": base, "cap": cap})
        print(*rows[-1], flush=True)
    asked.write("cap", "adapters beside random weights in FP8 are tuned within the share of memory "
                "that 24 GB are for 16B; beside weights in bfloat16 they are not", COLUMNS, rows,
                rows_measured=measured)


def measure(run: RunConfig) -> dict[str, Any]:
    """Take steps; bytes of the process beyond those it had before the weights, and the losses."""
    import jax
    import numpy as np

    from dsjax.runtime import backend as backends
    from dsjax.train import sharding

    length = run.train.seq_len + 1
    rng = np.random.default_rng(0)
    rows = {"tokens": rng.integers(0, run.model.vocab, (1, length), dtype=np.int32),
            "segments": np.ones((1, length), np.int32), "weights": np.ones((1, length), "f4")}
    batch = sharding.put_rows(rows, None)
    shapes = weights_of(run, lambda shape, dtype: jax.ShapeDtypeStruct(shape, dtype))
    program = sharding.compile_step(run, backends.for_run(run), None, frozen=shapes)
    compiled = program.lower(sharding.abstract(run, None), batch).compile()
    begin = jax.jit(lambda key: _begun(run, key)).lower(jax.random.key(0)).compile()
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    before = now()
    Path("/proc/self/clear_refs").write_text("5")  # the largest memory begins anew
    frozen = weights_of(run, lambda shape, dtype: jax.device_put(drawn(rng, shape, dtype)))
    state, losses = begin(jax.random.key(0)), []
    for _ in range(run.train.steps):
        state, m = compiled(state, batch, frozen)
        losses.append(float(m.loss))
    return {"own": largest() - before, "before": before, "losses": losses}


def _begun(run: RunConfig, key: Any) -> Any:
    from dsjax.train import state

    return state.init(run, key)


def weights_of(run: RunConfig, make: Any) -> Any:
    """Weights that rest, array by array: codes as bits with their scales, or bfloat16."""
    import jax.numpy as jnp

    from dsjax import params
    from dsjax.model import transformer
    from dsjax.numerics import scaled
    from dsjax.numerics.scaled import Scaled

    assert run.lora is not None, "adapters learn here"

    def one(spec: params.Spec) -> Any:
        if spec.is_product and run.lora.base == "fp8":
            codes, scales, tile = scaled.resting_shapes(spec)
            return Scaled(make(codes, jnp.uint8), make(scales, jnp.float32), tile)
        return make(spec.shape, jnp.float32 if spec.role == "router_bias" else jnp.bfloat16)

    return params.map_specs(one, transformer.specs(run.model))


def drawn(rng: Any, shape: tuple[int, ...], dtype: Any) -> Any:
    """Random numbers of the size that weights have, a stacked matrix at a time.

    They lie where JAX takes them over without a copy, as those do that are read from a folder.
    """
    import ml_dtypes
    import numpy as np

    if dtype == np.float32:  # scales of codes, or a router's bias
        return np.full(shape, 1e-4 if len(shape) > 2 else 0.0, np.float32)
    size = math.prod(shape) * np.dtype(dtype).itemsize
    raw = np.empty(size + ALIGNMENT, np.uint8)
    at = -raw.ctypes.data % ALIGNMENT
    out = raw[at : at + size].view(dtype).reshape(shape)
    for part in out if len(shape) > 1 else [out]:
        noise = rng.standard_normal(part.shape, np.float32)
        if out.dtype == np.uint8:
            part[...] = (noise * 200).clip(-448, 448).astype(ml_dtypes.float8_e4m3fn).view("u1")
        elif len(shape) > 2:
            part[...] = noise * 0.02
        else:
            part[...] = 1 + noise * 0.02
    return out


def now() -> int:
    """Resident memory of this process, in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def largest() -> int:
    """Largest resident memory of this process since it was set back, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024
