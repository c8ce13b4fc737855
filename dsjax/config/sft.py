"""Fine-tuning: examples instead of text, and which part of a model learns.

`SFTConfig` says how examples become rows; `LoRAConfig` and `ExpertsConfig` freeze a model but for
low-rank adapters or for some routed experts, in `dsjax train` as in `dsjax sft`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from dsjax.config.fields import between, counted, well_typed

Resting = Literal["stored", "float32", "bfloat16", "fp8"]
"""Numbers that frozen weights are held in; `fp8` has the matrices in codes of a byte with a scale
for each 128 x 128 of them, made once where they are not stored so, and the rest in bfloat16."""


@dataclass(frozen=True)
class SFTConfig:
    """Supervised fine-tuning: the loss is of completions, and rows are packed with whole examples.

    The defaults are V3's (report sec. 5.1): two epochs, examples that do not see each other.
    """

    epochs: float = 2.0
    """Times the examples are read, unless --train.steps says how many steps are taken."""
    long: Literal["refuse", "cut", "drop"] = "refuse"
    """An example that is longer than a row: `cut` its end off (one of which nothing would be
    learned is dropped), or `drop` it; the numbers are said."""
    mtp: bool = False
    """Train the model's MTP modules along; otherwise they are left out of the tuned model."""

    def __post_init__(self) -> None:
        """Refuse numbers that mean nothing."""
        well_typed(self)
        between(self, "epochs", 1e-6, 1e6, "V3's fine-tuning reads its examples twice")


@dataclass(frozen=True)
class LoRAConfig:
    """Low-rank adapters beside frozen matrices: W + alpha / rank A B (arXiv 2106.09685).

    Here a matrix is [in, out], A [in, rank] is drawn and B [rank, out] begins at zero.
    """

    rank: int = 16
    """Channels between A and B."""
    alpha: float = 32.0
    """Size of the adapters: their product counts alpha / rank times."""
    targets: tuple[str, ...] = ("attention", "ffn", "shared_expert")
    """Matrices that have adapters: attention, ffn (dense layers), shared_expert, expert, or names
    such as w_o and w_down."""
    base: Resting = "stored"
    """Numbers that the frozen weights are held in."""

    def __post_init__(self) -> None:
        """Refuse sizes that mean nothing."""
        well_typed(self)
        counted("LoRAConfig", rank=self.rank)
        between(self, "alpha", 1e-6, 1e6, "twice the rank is usual")
        if not self.targets:
            raise ValueError("LoRAConfig.targets=() leaves nothing to learn; use attention")

    @property
    def scale(self) -> float:
        """Factor of A B."""
        return self.alpha / self.rank


@dataclass(frozen=True)
class ExpertsConfig:
    """Expert-specialised fine-tuning: only the routed experts that a task uses (arXiv 2407.01906).

    A layer's experts are taken in the order of their share in the task's tokens, until the shares
    add up to `threshold`; all else is frozen.
    """

    threshold: float = 0.2
    """p: share of a layer's routing that the chosen experts carry at least."""
    score: Literal["gate", "token"] = "token"
    """Share of an expert: of the routing weights (ESFT-Gate) or of the choices (ESFT-Token)."""
    rows: int = 32
    """Rows of the training data that the shares are measured on."""
    chosen: str | None = None
    """Experts to train by layer, as `1:3,5 2:0`; None measures, and config.json then has them."""
    base: Resting = "stored"
    """Numbers that the frozen weights are held in."""

    def __post_init__(self) -> None:
        """Refuse shares and lists that mean nothing."""
        well_typed(self)
        counted("ExpertsConfig", rows=self.rows)
        between(self, "threshold", 1e-9, 1.0, "ESFT has 0.1 to 0.2")
        if self.chosen is not None and not re.fullmatch(
                r"\d{1,6}:\d{1,6}(,\d{1,6})*( \d{1,6}:\d{1,6}(,\d{1,6})*)*", self.chosen):
            raise ValueError(f"ExpertsConfig.chosen={self.chosen[:60]!r} is no list of experts by "
                             "layer; write 1:3,5 2:0")

    @property
    def by_layer(self) -> dict[int, tuple[int, ...]]:
        """Chosen experts of each layer of the main model, in order."""
        parts = (layer.split(":") for layer in (self.chosen or "").split())
        return {int(at): tuple(sorted({*map(int, of.split(","))})) for at, of in parts}


def written(by_layer: dict[int, tuple[int, ...]]) -> str:
    """Experts by layer as `ExpertsConfig.chosen` has them."""
    return " ".join(f"{at}:{','.join(map(str, of))}" for at, of in sorted(by_layer.items()) if of)
