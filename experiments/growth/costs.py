"""Compile a training step for 2, 4 and 8 devices and 16 to 256 experts, and count what it does.

Nothing is timed: bytes and multiply-adds are read from the compiled programs and from real choices
of experts. A step's data loops (rounds and tiles beyond the balanced load) count as not run.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import numpy as np

from dsjax.config.model import MLAConfig, ModelConfig, MoEConfig
from dsjax.config.parallel import ParallelConfig
from dsjax.config.run import PrecisionConfig, RunConfig, TrainConfig
from dsjax.layers import router
from dsjax.layers.moe import moe_specs
from dsjax.model.loss import Batch
from dsjax.parallel import expert, mesh_backend
from dsjax.params import init
from dsjax.plan import hlo
from dsjax.runtime import backend as backends
from dsjax.train import sharding as spread
from experiments.common.command import Asked

DEVICES, EXPERTS = (2, 4, 8), (16, 32, 64, 128, 256)
ROWS, LENGTH = 8, 256  # of a device
TOKENS = ROWS * LENGTH
WIDTH, PER_TOKEN = 128, 4


def configured(devices: int, experts: int, precision: str = "fp32") -> RunConfig:
    """One mixture layer; each device has as many tokens, and a token as many experts, as ever."""
    model = ModelConfig(
        vocab=128, d_model=WIDTH, layers=1, dense_layers=0, dense_dim=64,
        attention=MLAConfig(heads=2, kv_rank=16, nope_dim=16, rope_dim=8, value_dim=16, q_rank=16),
        moe=MoEConfig(experts=experts, experts_per_token=PER_TOKEN, expert_dim=64,
                      shared_experts=1),
    )
    train = TrainConfig(batch_size=ROWS * devices, seq_len=LENGTH)
    return RunConfig(name="growth", model=model, train=train, precision=PrecisionConfig(precision),
                     parallel=ParallelConfig(expert=devices))


def compiled(run: RunConfig) -> str:
    """The program of a whole step, gradients and optimizer included."""
    mesh = spread.open_mesh(run)
    backend = backends.for_run(run, mesh)
    step = spread.compile_step(run, backend, mesh)
    shape = (run.train.batch_size, run.train.seq_len + 1)
    rows = {name: np.zeros(shape, dtype) for name, dtype in (
        ("tokens", np.int32), ("segments", np.int32), ("weights", np.float32))}
    batch: Batch = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding),
        spread.put_rows(rows, mesh))
    return step.lower(spread.abstract(run, mesh), batch).compile().as_text()


def product_flops(text: str) -> int:
    """Floating-point operations of a program's matrix products on one device."""
    program = hlo.parse(text)

    def of(name: str) -> int:
        lines = program.computations[name]
        types = {line.name: line.type for line in lines}
        total = 0
        for line in lines:
            trips = hlo.trip_count(program, line) if line.opcode == "while" else 1
            total += trips * sum(of(called) for called in line.called)
            assert not hlo.PRODUCT_CALL.search(line.rest), f"{line.name} hides a product"
            if line.opcode == "dot":
                total += 2 * math.prod(dims(line.type)) * summed(line, types)
        return total

    return of(program.entry)


def dims(kind: str) -> list[int]:
    """Sizes of an array's type as HLO writes it."""
    return [int(d) for d in kind.split("[", 1)[1].split("]", 1)[0].split(",") if d]


def summed(line: hlo.Instruction, types: dict[str, str]) -> int:
    """Channels that a dot sums over."""
    left = dims(types[line.operands[0]])
    named = line.rest.split("lhs_contracting_dims={", 1)[1].split("}", 1)[0]
    return math.prod(left[int(i)] for i in named.split(",") if i)


def copies_expected(devices: int, experts: int) -> float:
    """Other devices that hold any of a token's experts, when all choices are equally likely."""
    none = math.comb(experts - experts // devices, PER_TOKEN) / math.comb(experts, PER_TOKEN)
    return (devices - 1) * (1 - none)


def copies_counted(run: RunConfig) -> float:
    """The same, of random tokens through a new router: rows that the exchange itself would send."""
    moe, devices = run.model.moe, run.parallel.expert
    assert moe is not None, "the model of this experiment is a mixture"
    x_key, p_key = jax.random.split(jax.random.key(0))
    x = jax.random.normal(x_key, (1, TOKENS * devices, WIDTH))
    p = init(moe_specs(WIDTH, moe).router, p_key, run.model.init_std)
    chosen = router.route(p, x, moe).experts.reshape(devices, TOKENS, PER_TOKEN)
    sizes = jax.vmap(lambda e: expert.make_copies(e, moe.experts, devices).sizes)(chosen)
    away = np.asarray(sizes) * (1 - np.eye(devices, dtype=int))
    return float(away.sum() / (TOKENS * devices))


def row_bytes(run: RunConfig) -> tuple[int, int]:
    """Bytes that a copy of a token moves: forward, out and back; backward, out and back."""
    wire = backends.for_run(run).precision.wire
    there, back = (form.row_bytes(WIDTH, 4) for form in (wire.out, wire.back))
    weights = numbers = 4 * PER_TOKEN
    return there + weights + numbers + back, there + weights + back


def sent_expected(run: RunConfig) -> int:
    """Bytes a device sends to others in a step whose exchange moves whole buffers, as a CPU's."""
    moe, devices = run.model.moe, run.parallel.expert
    assert moe is not None, "the model of this experiment is a mixture"
    stage = mesh_backend.exchange_stages(TOKENS, mesh_backend._nothing, run.parallel, moe,
                                         backends.for_run(run).precision.wire)
    return (devices - 1) * stage.rows * sum(row_bytes(run))


def measure(devices: int, experts: int, precision: str = "fp32") -> dict[str, Any]:
    """One row of the table."""
    run = configured(devices, experts, precision)
    text = compiled(run)
    usual = [c for c in hlo.collectives(text) if c.kind == "all-to-all" and not c.is_rare]
    flops = product_flops(text)
    routing = 3 * 2 * TOKENS * WIDTH * experts + 2 * TOKENS * experts  # affinities and loads
    return {
        "devices": devices, "experts": experts, "precision": precision,
        "copies_expected": copies_expected(devices, experts),
        "copies_counted": copies_counted(run),
        "bytes_a_copy": sum(row_bytes(run)),
        "sent_expected": sent_expected(run),
        "sent_compiled": sum(c.sent * c.times for c in usual),
        "flops": flops, "flops_router": routing, "flops_beyond": flops - routing,
    }


def columns(row: dict[str, Any]) -> list[Any]:
    """A row as the page shows it."""
    expected, counted = row["copies_expected"], row["copies_counted"]
    size = row["bytes_a_copy"]
    return [row["devices"], row["experts"], f"{expected:.3f}", f"{counted:.3f}",
            f"{expected * size:,.0f}", f"{counted * size:,.0f}", f"{row['sent_expected']:,}",
            f"{row['sent_compiled']:,}", f"{row['flops'] / 1e6:,.1f}",
            f"{row['flops_beyond'] / 1e6:,.1f}"]


def main(asked: Asked) -> None:
    """Compile every size, count, write the record."""
    jax.config.update("jax_num_cpu_devices", max(DEVICES))
    found = []
    for devices in DEVICES[:1] if asked.is_quick else DEVICES:
        for experts in EXPERTS[:2] if asked.is_quick else EXPERTS:
            found.append(measure(devices, experts))
            print(columns(found[-1]), flush=True)
    asked.write(
        "growth",
        "bytes and products of a device follow the tokens and the experts a token has, not the "
        "number of experts",
        ["devices", "experts", "copies a token, formula", "counted", "bytes a token, formula",
         "counted", "buffers sent, formula", "compiled", "products, MFLOP", "without the router"],
        [columns(row) for row in found], unit="a device and training step of one layer",
        rows_measured=found, design=dataclasses.asdict(configured(2, 16)),
    )
