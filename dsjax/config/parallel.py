"""The layout of a run over devices: never part of what it computes, free to change on resume."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from dsjax.config.fields import choices, counted, well_typed


@dataclass(frozen=True)
class ParallelConfig:
    """A mesh of pipe x data x fsdp x expert devices, and how experts' tokens travel in it.

    Every device of a pipeline's rank holds its own rows, whichever axis it lies on. The default is
    one device.
    """

    data: int = 1
    """Replicas of the parameters (V3 report sec. 3.2: ZeRO-1 data parallelism)."""
    fsdp: int = 1
    """Devices that share each matrix and gather it a layer at a time."""
    expert: int = 1
    """Devices that share the routed experts (V3: 64)."""
    expert_nodes: int = 1
    """Nodes that `expert` spans: a token then crosses to a node once (V3: 8)."""
    pipe: int = 1
    """Ranks of a pipeline, each with its share of the layers (V3: 16)."""
    schedule: Literal["gpipe", "1f1b", "interleaved", "zb-h1", "zb-v", "dualpipe",
                      "dualpipe-v"] = "1f1b"
    """Order in which the ranks of a pipeline work on the microbatches (V3: dualpipe)."""
    use_zero: bool = True
    """Cut masters and moments over `data` and `expert` too (ZeRO-1)."""
    capacity_factor: float = 1.25
    """Rows of an exchange over those of balanced routing; what exceeds them travels in another
    round, and no token is dropped."""
    exchange: Literal["ragged", "padded"] = "ragged"
    """`ragged` sends filled rows only, on TPU and GPU; `padded` all of them, as a CPU always does
    (XLA's one-shot ragged exchange has crashed above 32 GPUs, openxla/xla#47283)."""

    interleave: bool = False
    """Cut each device's rows in two and overlap the exchange of tokens of one half with products of
    the other, as attention, forward and backward (V3 report sec. 3.2.1 and 3.4.1, without a
    pipeline). The MTP module is not cut."""

    def __post_init__(self) -> None:
        """Refuse axes of nothing, and nodes that do not divide the experts' axis."""
        well_typed(self)
        for name in ("data", "fsdp", "expert", "expert_nodes", "pipe"):
            counted("ParallelConfig", **{name: getattr(self, name)})
        if self.expert % self.expert_nodes:
            raise ValueError(
                f"ParallelConfig.expert={self.expert} devices do not divide over expert_nodes="
                f"{self.expert_nodes}; choose expert_nodes from "
                f"{choices(self.expert, self.expert_nodes)}"
            )
        if self.pipe > 1 and self.fsdp > 1:
            raise ValueError(
                f"ParallelConfig.pipe={self.pipe} and fsdp={self.fsdp} exclude each other, as a "
                "pipeline's ranks hold their layers whole; choose fsdp=1 and more pipe, "
                "data or expert"
            )
        if self.pipe > 1 and self.interleave:
            raise ValueError(
                "a pipeline's schedule interleaves by itself; use --parallel.schedule dualpipe "
                "instead of --parallel.interleave"
            )
        if not (self.capacity_factor > 0 and math.isfinite(self.capacity_factor)):
            raise ValueError(
                f"ParallelConfig.capacity_factor={self.capacity_factor} is not a finite number "
                "above 0; try 1.25"
            )

    @property
    def devices(self) -> int:
        """Devices of the whole mesh."""
        return self.pipe * self.row_devices

    @property
    def row_devices(self) -> int:
        """Devices that the rows of a batch are cut over."""
        return self.data * self.fsdp * self.expert

    def __str__(self) -> str:
        """Name the axes, as in tables and headers."""
        pipe = f"pipe {self.pipe} ({self.schedule}) x " if self.pipe > 1 else ""
        nodes = f" over {self.expert_nodes} nodes" if self.expert_nodes > 1 else ""
        halves = ", interleaved" if self.interleave else ""
        return f"{pipe}data {self.data} x fsdp {self.fsdp} x expert {self.expert}{nodes}{halves}"
