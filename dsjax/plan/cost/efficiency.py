"""Shares of the data sheets' rates that programs reach: each has a source, or was fitted to a run.

`STACKS` are programs that runs were published with. What sets them apart is counted where it is
known (the kernels' form of quantization, whether exchanges run beside products, multiprocessors
given to them) and otherwise one factor, `reached`, fitted to one published run and used for all
others of the same stack; dsjax.plan.evidence.calibration shows both kinds of row. Where two sources
of a share disagree, as of attention, the one that is taken was chosen with those rows in view.
"""

from __future__ import annotations

from dataclasses import dataclass

from dsjax.config.fields import did_you_mean
from dsjax.errors import UserError
from dsjax.plan.cost.site import Site


@dataclass(frozen=True)
class Share:
    """A part of a rate, and where it is from."""

    value: float
    source: str


PRODUCT = Share(0.7, "DeepGEMM's README: grouped FP8 products at 1,346 and 1,214 of 1,979 TFLOP/s "
                "on an H800; XLA's bfloat16 at 714 of 989 on an H200; assumed of other chips")
CORE = Share(0.58, "FlashMLA's README: 1,460 TFLOP/s forward on a B200, 192 and 128 channels; "
             "assumed of other chips (cuDNN on an H200, rows of 2,048: 0.47)")
CORE_BACKWARD = Share(0.4, "the same, backward: 1,000 TFLOP/s (cuDNN on an H200, rows of 2,048: "
                      "0.26)")
MEMORY = Share(0.8, "between XLA's 3,218 of 4,800 GB/s on an H200 and FlashMLA's 3,000 of 3,350 on "
               "an H800")
LINK = Share(0.8, "V3 report, sec. 3.2.2: 40 of 50 GB/s on InfiniBand, 160 of 200 on NVLink")
SHARES = {"products": PRODUCT, "scores and values": CORE, "their backward": CORE_BACKWARD,
          "memory": MEMORY, "links": LINK}


@dataclass(frozen=True)
class Stack:
    """A program that trains, as far as its speed is concerned."""

    name: str
    reached: float
    """Share of the time above that is work, the rest launches, waits and imbalance: fitted."""
    fitted_to: str
    """Name of the published run that `reached` was fitted to."""
    for_exchange: float = 0.0
    """Share of a device's multiprocessors that only exchange."""
    is_hidden: bool = True
    """Exchanges run beside products, where these take longer."""
    quantize_passes: int = 1
    """Times that an operand is read to become codes: two where its largest entry is sought
    first."""


STACKS = {
    "deepseek": Stack("deepseek", 0.856, "DeepSeek, 2,048 H800", for_exchange=20 / 132,
                      is_hidden=False),  # but by DualPipe's pairs
    "megatron": Stack("megatron", 0.866, "Megatron-Bridge 26.08, 256 GB200"),
    "megatron-2025": Stack("megatron-2025", 0.69, "Megatron-Bridge 25.11, 256 GB200"),
    "maxtext": Stack("maxtext", 0.82, "MaxText, 128 v7x, bfloat16", quantize_passes=2),
    "automodel": Stack("automodel", 0.81, "NeMo Automodel, 256 H100"),
    "simumax": Stack("simumax", 0.642, "SimuMax, 8 B200, V3 widths, 32 microbatches"),
}
"""By name."""


def stack(name: str | None, site: Site) -> Stack:
    """A stack by name; by default the one that the site's runs were published with."""
    if name is None:
        name = "maxtext" if site.chip.platform == "tpu" else "megatron"
        if site.kind in ("h800", "h100", "h200"):
            name = "deepseek"
    if name not in STACKS:
        raise UserError(f"there is no stack {name!r}{did_you_mean(name, STACKS)}; choose one of "
                        f"{', '.join(STACKS)}")
    return STACKS[name]
