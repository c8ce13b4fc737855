"""Time of a decoding step and of reading prompts on a site: bounds by memory, products and links.

Attention is replicated over the devices of a unit and each has rows of its own; routed experts are
shared by all of them (V3 report sec. 3.4: prefill over 32 devices, decoding over 320; later online
over 32 and 144). Decoding attends in the absorbed form over latents. Each token goes to each of its
experts apart, as low-latency kernels send it, out in FP8 and back in bfloat16; two half batches run
in turn, so that links and devices work at once.

What comes out is a bound: no queue, no idle hour, even experts.
"""

from __future__ import annotations

from dataclasses import dataclass

from dsjax.config.model import MLAConfig, ModelConfig
from dsjax.config.run import RunConfig
from dsjax.errors import UserError
from dsjax.model.count import cached_numbers
from dsjax.plan.cost import efficiency, exchange, stage, work
from dsjax.plan.cost.efficiency import Share
from dsjax.plan.cost.site import Site
from dsjax.plan.cost.work import Layer

CACHE = Share(0.9, "FlashMLA's README: 3,000 of 3,350 GB/s on an H800, bound by memory")
DECODE = Share(0.667, "FlashMLA's README: 660 of 989 TFLOP/s on an H800, bound by products")
CACHED_BYTES = 2  # of a cached number: bfloat16
SHARES = {"cache": CACHE, "absorbed scores and values": DECODE}


@dataclass(frozen=True)
class Decoding:
    """A step of a unit in which every row gets a token."""

    weights: float
    """Seconds for products: their weights read, or their FLOPs, whichever is longer."""
    attention: float
    """Seconds for the cache read, or for scores and values, whichever is longer."""
    links: float
    """Seconds of exchanges, beside the two above."""
    rows: int
    """Of a device."""
    weight_bytes: float
    cache_bytes: float
    limit: float

    @property
    def step(self) -> float:
        """Seconds of the step; exchanges of a half batch run beside the other half."""
        return max(self.weights + self.attention, self.links)

    @property
    def fits(self) -> bool:
        """True where a device holds weights and caches."""
        return self.weight_bytes + self.cache_bytes <= self.limit


def decode(run: RunConfig, site: Site, rows: int, context: int) -> Decoding:
    """Bound a decoding step of `rows` rows a device, each with so many cached positions."""
    if rows < 1 or context < 1:
        raise UserError(f"--decode {rows} and --context {context} must be at least 1; give more")
    model, layout = run.model, run.parallel
    whole = work.of(model, context, run.precision.operand_bytes)
    layers = whole.layers[: model.layers]
    narrow, wide = stage.rates(run, site)
    cache_rate = site.bandwidth * CACHE.value
    size = run.precision.operand_bytes
    weights = attention = held = 0.0
    for layer in layers:
        touched = layer.shared + _touched(layer, model, rows * layout.expert) / layout.expert
        held += layer.shared + layer.routed / layout.expert
        weights += max(touched * size / cache_rate, rows * layer.product / narrow)
        cached = rows * context * cached_numbers(model) * CACHED_BYTES
        core = rows * absorbed(model, context) / (site.chip.bf16 * DECODE.value)
        attention += max(cached / cache_rate, core)
    ends = model.vocab * model.d_model
    weights += max(2 * ends / cache_rate, rows * whole.head / wide)
    return Decoding(
        weights, attention, rows * _sent(run, site, len(layers)), rows, held * size + 4 * ends,
        rows * context * cached_numbers(model) * CACHED_BYTES * model.layers, site.chip.memory)


def _touched(layer: Layer, model: ModelConfig, rows: int) -> float:
    """Numbers of the routed experts that so many tokens choose, evenly."""
    if not layer.is_moe or model.moe is None:
        return 0.0
    share = model.moe.experts_per_token / model.moe.experts
    return layer.routed * (1 - (1 - share) ** rows)


def absorbed(model: ModelConfig, context: int) -> float:
    """FLOPs of one token's scores and values in one layer over a cache of so many positions."""
    a = model.attention
    if isinstance(a, MLAConfig):
        return 2.0 * a.heads * (2 * a.kv_rank + a.rope_dim) * context
    return 4.0 * a.heads * a.head_dim * context


def _sent(run: RunConfig, site: Site, layers: int) -> float:
    """Seconds that one token's exchanges take of its device's links, in all layers."""
    model, layout = run.model, run.parallel
    if model.moe is None or layout.expert == 1:
        return 0.0
    domain = min(site.fabric.domain, layout.expert)
    copies = model.moe.experts_per_token
    out = model.d_model * (1 + exchange.SCALE_BYTES if run.precision.operand_bytes == 1 else 2)
    each = (out + 2 * model.d_model) / efficiency.LINK.value
    far = copies * (1 - domain / layout.expert) * each / site.fabric.far
    near = copies * (domain - 1) / layout.expert * each / site.fabric.near
    return (layers - model.dense_layers) * max(far, near)


def read(run: RunConfig, site: Site, length: int) -> float:
    """Tokens/s of a device that reads prompts of `length` tokens, a half batch beside another."""
    model = run.model
    whole = work.of(model, length, run.precision.operand_bytes)
    own = stage.stage(run, site, efficiency.STACKS["deepseek"], whole.layers[: model.layers], whole,
                      length)
    busy = own.products.f + own.core.f + own.memory.f
    return length / max(busy, own.exchange)


def streamed(run: RunConfig, bandwidth: float) -> float:
    """Tokens/s at batch 1 where each token's routed experts come over a link of so many bytes/s.

    The rest of the model is on the card. The link may be a bus to the card, or the host's memory
    where the host itself multiplies.
    """
    model = run.model
    if model.moe is None:
        raise UserError(f"{run.name} has no experts; --host is about experts in the host's memory")
    share = model.moe.experts_per_token / model.moe.experts
    whole = work.of(model, 1, run.precision.operand_bytes)
    chosen = sum(layer.routed for layer in whole.layers[: model.layers]) * share
    return bandwidth / (chosen * run.precision.operand_bytes)
