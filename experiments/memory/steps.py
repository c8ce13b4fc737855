"""Compile a training step with each saving left out, and read what the compiler asks for.

Nothing runs. Bytes of a step are its arguments (masters, moments, batch), which are donated, and
its temporaries. Two savings are no part of a step's program and are added by arithmetic where they
are left out: an average that is kept on the device (4 bytes a parameter), and a second embedding
and head of the MTP module (masters, both moments and gradients of 2 V D parameters).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np

from configs import tiny
from dsjax import params
from dsjax.config.parallel import ParallelConfig
from dsjax.config.run import RunConfig, with_fields
from dsjax.model import transformer
from dsjax.runtime import backend as backends
from dsjax.train import sharding
from experiments.common.command import Asked
from experiments.common.small import verdicts
from experiments.common.small.answer import said

DEVICES = 4
QUARTER = 0.25


def whole(is_quick: bool = False) -> RunConfig:
    """The step with every saving, on one device: `tiny` as V3 trains."""
    run = with_fields(tiny.config(), train={"steps": 10},
                      precision={"matmul": "fp8", "activations": "bfloat16"},
                      machine={"remat": "v3", "fp8_matmul": "codes"},
                      optimizer={"moments": "bfloat16", "ema_decay": 0.0})
    if is_quick:
        run = with_fields(run, model={"layers": 2, "mtp_depth": 0},
                          train={"batch_size": 2, "seq_len": 32}, precision={"matmul": "fp32"})
    return run


def arms() -> dict[str, tuple[str, RunConfig]]:
    """Runs by name, each with the saving that it leaves out in words."""
    run = whole()
    return {
        "all": ("nothing", run),
        "recomputation": ("activations are kept, not made again",
                          with_fields(run, machine={"remat": "none"})),
        "moments": ("moments in float32", with_fields(run, optimizer={"moments": "float32"})),
        "8 bits": ("operands and caches in bfloat16",
                   with_fields(run, precision={"matmul": "bf16"})),
        "16 bits": ("operands and activations in float32", with_fields(
            run, precision={"matmul": "fp32", "activations": "float32"})),
        "none": ("all of these: float32, kept, float32 moments", with_fields(
            run, precision={"matmul": "fp32", "activations": "float32"},
            machine={"remat": "none"}, optimizer={"moments": "float32"})),
        "over 4 devices": ("nothing, parameters and rows over 4 devices", dataclasses.replace(
            run, parallel=ParallelConfig(fsdp=DEVICES))),
    }


def measure(run: RunConfig) -> dict[str, int]:
    """Bytes of one device that the compiled step asks for."""
    mesh = sharding.open_mesh(run)
    step: Any = sharding.compile_step(run, backends.for_run(run, mesh), mesh)
    shape = (run.train.batch_size, run.train.seq_len + 1)
    rows = {name: np.zeros(shape, dtype) for name, dtype in (
        ("tokens", np.int32), ("segments", np.int32), ("weights", np.float32))}
    put = sharding.put_rows(rows, mesh)
    batch = put if mesh is None else jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), put)
    found = step.lower(sharding.abstract(run, mesh), batch).compile().memory_analysis()
    return {"arguments": found.argument_size_in_bytes, "temporaries": found.temp_size_in_bytes}


def arithmetic(run: RunConfig) -> dict[str, tuple[str, int]]:
    """Bytes that two savings save beside the program."""
    size = params.size(transformer.specs(run.model))
    ends = 2 * run.model.vocab * run.model.d_model
    moment = np.dtype(np.float32).itemsize if run.optimizer.moments == "float32" else 2
    return {"host average": ("the average on the device", 4 * size),
            "shared ends": ("embedding and head of their own for the MTP module",
                            ends * (4 + 2 * moment + 4))}


COLUMNS = ("left out", "in words", "MiB of state and batch", "MiB of temporaries", "MiB together",
           "against all savings")


def table(found: dict[str, dict[str, int]], words: dict[str, str]) -> list[list[Any]]:
    """A row for each step."""
    base = sum(found["all"].values())
    return [[name, words[name], f"{one['arguments'] / 2**20:.1f}",
             f"{one['temporaries'] / 2**20:.1f}", f"{sum(one.values()) / 2**20:.1f}",
             f"{100 * (sum(one.values()) / base - 1):+.1f} %"] for name, one in found.items()]


def judge(found: dict[str, dict[str, int]]) -> dict[str, dict[str, str]]:
    """Verdicts by the rules of the page."""
    total = {name: sum(one.values()) for name, one in found.items()}
    base, share = total["all"], total["all"] / total["none"]
    costs = {name: one for name, one in total.items() if name not in ("all", "over 4 devices")}
    vain = [name for name, one in costs.items() if one <= base]
    if total["over 4 devices"] >= base:
        vain.append("over 4 devices")
    number = "each costs memory where it is left out" if not vain else f"none by {', '.join(vain)}"
    return {
        "each": said(verdicts.CONTRADICTS if vain else verdicts.SUPPORTS, number),
        "quarter": said(verdicts.SUPPORTS if share <= QUARTER else verdicts.CONTRADICTS,
                        f"{100 * (1 - share):.0f} % less than float32 with nothing made again"),
    }


def main(asked: Asked) -> None:
    """Compile, judge and write the record."""
    of = {"all": ("nothing", whole(is_quick=True))} if asked.is_quick else arms()
    words, found = {name: what for name, (what, _) in of.items()}, {}
    for name, (_, run) in of.items():
        found[name] = measure(run)
        print(f"{name}: {sum(found[name].values()) / 2**20:.1f} MiB", flush=True)
        jax.clear_caches()
    for name, (what, size) in arithmetic(of["all"][1]).items():
        found[name] = found["all"] | {"arguments": found["all"]["arguments"] + size}
        words[name] = f"{what} (arithmetic)"
    verdicts_ = {} if asked.is_quick else judge(found)
    asked.write("steps", "memory of a training step with each of V3's savings left out", COLUMNS,
                table(found, words), verdicts=verdicts_, bytes=found)
