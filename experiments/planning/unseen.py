"""Published runs of other models, which fitted nothing, beside what is predicted.

Layouts, batches and figures are those of two pages, read in November 2026; neither says what is
recomputed, so each is planned with the least that fits by our count.
"""

from __future__ import annotations

import dataclasses
import statistics
from dataclasses import dataclass

from dsjax.config.load import load
from dsjax.config.model import GQAConfig, ModelConfig, MoEConfig
from dsjax.config.parallel import ParallelConfig
from dsjax.config.run import RunConfig, with_fields
from dsjax.plan.cost import efficiency, site
from dsjax.plan.cost.room import room
from dsjax.plan.cost.search import REMAT
from dsjax.plan.cost.step import estimate
from experiments.common.command import Asked


def _qwen(layers: int, d_model: int, heads: int, expert_dim: int) -> ModelConfig:
    """Qwen3's mixtures: 8 of 128 experts, none shared (Qwen3 technical report, Table 2)."""
    return ModelConfig(
        vocab=151936, d_model=d_model, layers=layers, dense_layers=0, dense_dim=d_model,
        attention=GQAConfig(heads, 4, 128),
        moe=MoEConfig(128, 8, expert_dim, shared_experts=0, score="softmax", has_bias=False))


def _llama(layers: int, d_model: int, dense_dim: int) -> ModelConfig:
    """Llama 3 (The Llama 3 herd of models, Table 3)."""
    return ModelConfig(vocab=128256, d_model=d_model, layers=layers, dense_layers=layers,
                       dense_dim=dense_dim, attention=GQAConfig(d_model // 128, 8, 128))


MODELS = {
    "Qwen3 30B": _qwen(48, 2048, 32, 768),
    "Qwen3 235B": _qwen(94, 4096, 64, 1536),
    "Llama 3 8B": _llama(32, 4096, 14336),
    "Llama 3 70B": _llama(80, 8192, 28672),
    "Kimi K2": load("kimi_k2").model,
}


@dataclass(frozen=True)
class Unseen:
    """A published run: a model of MODELS on a site, rows of a step and of a microbatch."""

    model: str
    on: str
    precision: str
    tokens_per_chip: float
    rows: int
    microbatch: int
    layout: ParallelConfig
    chunks: int | None = None
    stack: str = "megatron-2025"
    length: int = 4096


def _piped(pipe: int, expert: int, data: int = 1) -> ParallelConfig:
    return ParallelConfig(pipe=pipe, expert=expert, data=data, schedule="interleaved")


NODE, DATA = ParallelConfig(expert=8), ParallelConfig(data=8)
ROWS = (
    # Kimi K2: one of the two passes of a step, each of 8 microbatches.
    Unseen("Kimi K2", "h100:256", "bf16", 924, 256, 1, _piped(8, 32), 4, "automodel"),
    Unseen("Qwen3 30B", "h100:8", "bf16", 12040, 512, 4, NODE, None, "automodel"),
    Unseen("Qwen3 30B", "gb300:8", "fp8", 28934, 512, 4, NODE),
    Unseen("Qwen3 30B", "gb200:8", "fp8", 23766, 512, 4, NODE),
    Unseen("Qwen3 30B", "b200:8", "fp8", 9299, 512, 1, NODE),
    Unseen("Qwen3 30B", "h100:16", "fp8", 5275, 512, 2, _piped(2, 8), 24),
    Unseen("Qwen3 235B", "gb300:256", "bf16", 6131, 8192, 2, _piped(4, 16, 4), 12),
    Unseen("Qwen3 235B", "gb200:256", "bf16", 4916, 8192, 1, _piped(8, 32), 3),
    Unseen("Qwen3 235B", "b200:64", "fp8", 3269, 1024, 1, _piped(8, 8), 2),
    Unseen("Llama 3 8B", "gb300:8", "fp8", 37556, 128, 2, DATA, length=8192),
    Unseen("Llama 3 8B", "gb200:8", "fp8", 31508, 128, 2, DATA, length=8192),
    Unseen("Llama 3 8B", "b200:8", "fp8", 30624, 128, 2, DATA, length=8192),
    Unseen("Llama 3 8B", "h100:8", "fp8", 14451, 128, 1, ParallelConfig(fsdp=8), length=8192),
    Unseen("Llama 3 70B", "gb300:64", "fp8", 4520, 256, 2, ParallelConfig(fsdp=64), length=8192),
    Unseen("Llama 3 70B", "gb200:64", "fp8", 4312, 256, 2, ParallelConfig(fsdp=64), length=8192),
)
"""NeMo Automodel, docs/performance-summary.md (October 2025): `automodel`. Megatron-Bridge,
docs/performance-summary.md, container 25.11: the others. Rows with tensor or context parallelism,
and GPT-OSS, whose attention slides, cannot be expressed."""


def main(asked: Asked) -> None:
    """Predict all rows and write the record."""
    rows, errors = [], []
    for one in ROWS:
        run = least(one)
        where = site.parse(one.on)
        made = estimate(run, where, efficiency.STACKS[one.stack], one.chunks)
        predicted = made.tokens / made.step / where.chips
        errors.append(predicted / one.tokens_per_chip - 1)
        rows.append([f"{one.model}, {one.on}, {one.precision}", one.stack,
                     f"{one.tokens_per_chip:,.0f}", f"{predicted:,.0f}", f"{errors[-1]:+.1%}",
                     run.machine.remat])
    middle = statistics.median(abs(error) for error in errors)
    rows.append([f"median size of {len(errors)} errors", "", "", "", f"{middle:.1%}", ""])
    asked.write("unseen", "tokens/s of a chip, of models and runs that fitted nothing",
                ["run", "stack", "published", "predicted", "error", "remat"], rows)


def least(one: Unseen) -> RunConfig:
    """The run with the least recomputation that fits, or all of it."""
    own = load("deepseek_v3")
    made = dataclasses.replace(with_fields(
        own, precision={"matmul": one.precision}, train={
            "batch_size": one.rows, "seq_len": one.length, "batch_size_start": None,
            "batch_size_ramp_steps": 0,
            "microbatches": one.rows // (one.microbatch * one.layout.row_devices)}),
        model=MODELS[one.model], parallel=one.layout)
    tried = [with_fields(made, machine={"remat": remat}) for remat in REMAT]
    fitting = [run for run in tried if room(run, site.parse(one.on), one.chunks).fits]
    return fitting[0] if fitting else tried[-1]
