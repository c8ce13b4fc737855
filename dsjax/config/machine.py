"""Fit of a run to its machine."""

from dataclasses import dataclass
from typing import Literal

from dsjax.config.fields import counted, well_typed


@dataclass(frozen=True)
class MachineConfig:
    """Fit of a step to a machine: memory against time, never what is computed."""

    remat: Literal["none", "v3", "full"] = "none"
    """Activations that the backward pass computes again: `v3` norms, MLA up-projections and SwiGLU
    outputs; `full` all of a block but its tokens' choice of experts."""
    fp8_matmul: Literal["auto", "kernel", "codes", "values"] = "auto"
    """Operands of FP8 products: the 8-bit `codes`, on machines that multiply them (Hopper and
    Blackwell GPUs, TPU7x), or the exact `values` they stand for, in bfloat16. `kernel`: codes, by a
    Pallas kernel (Hopper, TPU7x). `auto`: the first of kernel, codes and values that the machine
    has. They differ by roundings of float32 sums. A CPU can be told `codes` to check them; it has
    no instruction for them and is slow."""
    attention: Literal["auto", "blocks", "kernel"] = "auto"
    """Attention over rows: in plain `blocks`, or by a vendor's flash `kernel` (cuDNN's, on NVIDIA
    GPUs from Hopper on, in runs that multiply bfloat16 or 8 bits). `auto`: the kernel on Hopper,
    where it can be. They differ by roundings."""
    documents: int = 16
    """Documents a row may have for the kernel to take a batch, where rows are not of one each; a
    batch with more goes to the blocks. Softmax sums for the backward pass take as many times the
    memory of one document's."""
    unroll: int | None = None
    """Layers written out per scan iteration: longer compile, fewer copies. None: every layer of a
    model of at most 32 that trains on one GPU, otherwise 1."""

    def __post_init__(self) -> None:
        """Refuse counts that mean nothing."""
        well_typed(self)
        counted("MachineConfig", documents=self.documents)
        if self.unroll is not None:
            counted("MachineConfig", unroll=self.unroll)
