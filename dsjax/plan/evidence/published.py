"""Runs of V3 and V2 that others have published, as configs of ours: what a plan is held against.

Figures are the sources' own, read in November 2026, and none is audited. Where a source does not
say a layout in full, `assumed` has what was filled in. Tensor parallelism, which we do not have, is
counted as that much data parallelism.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

from dsjax.config.load import load
from dsjax.config.machine import MachineConfig
from dsjax.config.parallel import ParallelConfig
from dsjax.config.run import OptimizerConfig, RunConfig, with_fields


@dataclass(frozen=True)
class Published:
    """A run that was measured elsewhere."""

    name: str
    source: str
    site: str
    stack: str
    tokens_per_chip: float
    """Tokens/s of a chip."""
    precision: Literal["bf16", "fp8"]
    rows: int
    microbatches: int
    layout: ParallelConfig
    chunks: int | None = None
    remat: Literal["none", "v3", "full"] = "v3"
    assumed: str = ""
    config: str = "deepseek_v3"
    moments: Literal["bfloat16", "float32"] = "bfloat16"
    gib: float | None = None
    """GiB of a device, where its memory was published."""
    model: dict[str, Any] = field(default_factory=dict)
    """Fields of the model that differ."""

    def run(self) -> RunConfig:
        """The run as a config."""
        own = load(self.config)
        made = with_fields(own, model=self.model, precision={"matmul": self.precision}, train={
            "batch_size": self.rows, "microbatches": self.microbatches, "batch_size_start": None,
            "batch_size_ramp_steps": 0, "seq_len": 4096})
        return dataclasses.replace(
            made, parallel=self.layout, machine=MachineConfig(remat=self.remat),
            optimizer=OptimizerConfig(moments=self.moments))


BRIDGE = "Megatron-Bridge, performance summary {}"
RECIPES = "MaxText, tpu-recipes, training/{}"
NO_MTP = {"mtp_depth": 0}
REMAT = "recomputation as V3's"


def _bridge(version: str, site: str, tokens: float, layout: ParallelConfig, chunks: int | None,
            rows: int, microbatch: int = 1, **more: Any) -> Published:
    """A row of Megatron-Bridge's summaries; microbatch in rows."""
    kind, _, _ = site.partition(":")
    precision = more.pop("precision", "fp8")
    words = "" if precision == "fp8" else ", bfloat16"
    return Published(
        f"Megatron-Bridge {version}, 256 {kind.upper()}{words}", BRIDGE.format(version), site,
        "megatron" if version.startswith("26") else "megatron-2025", tokens, precision, rows,
        rows // (layout.row_devices * microbatch), layout, chunks,
        assumed=more.pop("assumed", REMAT), **more)


P2 = ParallelConfig(data=4, expert=32, pipe=2, schedule="interleaved")
P4 = ParallelConfig(expert=64, pipe=4, schedule="interleaved")
P8 = ParallelConfig(data=4, expert=8, pipe=8)
P16 = ParallelConfig(data=2, expert=8, pipe=16)
P8_32 = ParallelConfig(expert=32, pipe=8, schedule="interleaved")


def _maxtext(chips: int, kind: str, tokens: float, precision: Literal["bf16", "fp8"],
             page: str) -> Published:
    devices = chips * (2 if kind == "v7x" else 1)
    words = "bfloat16" if precision == "bf16" else "FP8"
    microbatches = 1 if kind == "v7x" else 3
    rows = devices * (8 if kind == "v7x" else 12)
    return Published(
        f"MaxText, {chips} {kind}, {words}", RECIPES.format(page), f"{kind}:{chips}", "maxtext",
        tokens, precision, rows, microbatches, ParallelConfig(fsdp=devices), remat="full",
        assumed="FSDP over all devices, no MTP, full recomputation" + (
            "" if kind == "v7x" else "; 12 sequences a device in 3 microbatches, from 90.67 s a "
            "step"), model=NO_MTP)


def _node(model: str, microbatches: int, milliseconds: float) -> Published:
    """SimuMax's measurements of one node of 8 B200."""
    tokens = microbatches * 4096 / (milliseconds / 1e3)
    return Published(
        f"SimuMax, 8 B200, {model} widths, {microbatches} microbatches", "SimuMax v1.2", "b200:8",
        "simumax", tokens, "bf16", 8 * microbatches, microbatches, ParallelConfig(expert=8),
        remat="none", config=f"deepseek_{model.lower()}", gib={"V3": 104.3, "V2": 45.63}[model],
        model={"layers": 4, "dense_layers": 1, "mtp_depth": 0}, moments="float32",
        assumed="four layers of which one is dense, no recomputation, float32 moments and "
                "gradients, ZeRO-1; logits of whole rows in bfloat16 and tokens as laid out for "
                "their experts are kept")


ROWS = (
    Published(
        "DeepSeek, 2,048 H800", "V3 report, sec. 3.2 and 4.2; Insights into DeepSeek-V3, Table 4",
        "h800:2048", "deepseek", 1541.8, "fp8", 15360, 120,
        ParallelConfig(data=2, expert=64, expert_nodes=8, pipe=16, schedule="dualpipe"),
        assumed="one sequence a microbatch"),
    Published(
        "DeepSeek-V2, H800", "V2 report, sec. 3.1.3 and 3.2.3: 172.8K H800-hours a trillion tokens",
        "h800:1024", "deepseek", 1e12 / 172.8e3 / 3600, "bf16", 9216, 144,
        ParallelConfig(data=8, expert=8, pipe=16, schedule="zb-h1"), config="deepseek_v2",
        assumed="1,024 H800, one sequence a microbatch, recomputation as V3's, V3's later kernels"),
    _maxtext(128, "v7x", 2425.75, "bf16", "ironwood"),
    _maxtext(128, "v7x", 2917.15, "fp8", "ironwood"),
    _maxtext(256, "v7x", 2446.25, "bf16", "ironwood"),
    _maxtext(256, "v7x", 2968.49, "fp8", "ironwood"),
    _maxtext(512, "v5p", 542.1, "bf16", "v5p"),
    _bridge("26.08", "gb200:256", 4912, P4, 4, 4096),
    _bridge("26.08", "gb300:256", 6288, P2, 8, 4096),
    _bridge("26.06.01", "gb300:256", 6304, P2, 8, 4096),
    _bridge("26.06.01", "gb200:256", 4928, P4, 4, 4096),
    _bridge("26.06", "b300:256", 3541, P8, None, 4096,
            assumed=f"layout and batch of 26.04.01; {REMAT}"),
    _bridge("26.04.01", "gb300:256", 4992, P2, 8, 4096, 2),
    _bridge("26.04.01", "gb200:256", 4256, P4, 4, 4096),
    _bridge("26.04.01", "b300:256", 3456, P8, None, 4096, 2),
    _bridge("26.04.01", "b200:256", 3328, P16, None, 2048,
            assumed=f"layout and batch of 25.11; {REMAT}"),
    _bridge("25.11", "gb200:256", 4018, P8_32, 4, 4096, model=NO_MTP),
    _bridge("25.11", "gb300:256", 4357, P2, 4, 4096, model=NO_MTP),
    _bridge("25.11", "gb200:256", 3139, P4, 4, 4096, model=NO_MTP, precision="bf16"),
    _bridge("25.11", "gb300:256", 3848, P2, 4, 4096, model=NO_MTP, precision="bf16"),
    _bridge("25.11", "b200:256", 2139, P16, None, 2048),
    Published("Megatron-Bridge 25.09, 1,024 H100", BRIDGE.format("25.09"), "h100:1024",
              "megatron-2025", 1297, "fp8", 8192, 64,
              ParallelConfig(data=2, expert=64, pipe=8, schedule="interleaved"), 4,
              assumed=f"8,192 sequences a step; tensor parallelism of 2 as data; {REMAT}"),
    Published("NeMo Automodel, 256 H100", "NeMo Automodel, performance summary", "h100:256",
              "automodel", 1002, "bf16", 512, 8,
              ParallelConfig(expert=64, pipe=4, schedule="interleaved"), 8, "full",
              "full recomputation"),
    Published("NeMo Automodel, 1,024 H100", "NeMo Automodel, performance summary", "h100:1024",
              "automodel", 865, "bf16", 2048, 8,
              ParallelConfig(data=4, expert=64, pipe=4, schedule="interleaved"), 8, "full",
              "full recomputation; one of the four passes of a step, each of 8 microbatches"),
    _node("V3", 32, 4141.2),
    _node("V3", 8, 1101.7),
    _node("V3", 4, 603.2),
    _node("V2", 32, 2721.3),
    _node("V2", 8, 676.2),
    _node("V2", 4, 366.6),
)
"""Left out for want of a layout: PyTorch's and Nebius's torchtitan runs on 256 B200."""
