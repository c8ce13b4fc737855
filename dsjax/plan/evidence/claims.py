"""The ladder from a dense float32 model to V3: the factor of each step in training and in serving.

The "45 times more efficient" and "a twentieth of the price" that circulate multiply innovations
together; neither is the reports'. Here every step has a factor and a source. Three kinds: `counted`
(arithmetic on data sheets and Specs), `planned` (this planner's estimate of the run with and
without it), `published` (somebody's measurement or judgement, which is not checked here). At the
bottom stands what DeepSeek served online beside the bound that is planned.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from dsjax.config.load import load
from dsjax.config.model import GQAConfig, ModelConfig
from dsjax.config.run import RunConfig, with_fields
from dsjax.model.count import cached_numbers, training_flops
from dsjax.plan.cost import serving, site, step
from dsjax.plan.cost.bill import PRICES
from dsjax.plan.cost.efficiency import STACKS

Kind = Literal["counted", "planned", "published"]
CONTEXT = 4989
"""Positions behind a token that DeepSeek served, on average (open-infra-index, day 6)."""
UNIT = 144  # devices of a decoding unit (the same)
ONLINE = {"prefill": 73_700.0, "decode": 14_800.0}
"""Tokens/s of a node of 8 H800 in February 2025 (the same); prefill with cache hits."""
HITS = 0.563
"""Share of the prompts' tokens that came from a cache (the same)."""
SAID = 45.0
"""The factor that circulates (articles of January 2025)."""


@dataclass(frozen=True)
class Rung:
    """One step of the ladder; factors are how many times cheaper it makes what stood before."""

    name: str
    training: float
    serving: float
    kind: Kind
    source: str


@dataclass(frozen=True)
class Served:
    """Rates of a node of 8 H800: planned as a bound, and online."""

    name: str
    bound: float
    online: float
    dollars: float
    """Of a million tokens at the online rate and the report's price of an H800-hour."""


def ladder() -> list[Rung]:
    """All steps, each on top of those before it."""
    v3, dense = _v3(), _llama()
    wide = with_fields(v3, precision={"matmul": "bf16"})
    narrow = with_fields(v3, precision={"matmul": "fp8"})
    full, grouped = (with_fields(_with_heads(v3, count), precision={"matmul": "bf16"})
                     for count in (128, 8))
    flops = training_flops(dense, 4096) / training_flops(
        dataclasses.replace(v3.model, mtp_depth=0), 4096)
    mtp = training_flops(v3.model, 4096) / training_flops(
        dataclasses.replace(v3.model, mtp_depth=0), 4096)
    return [
        Rung("float32 -> bfloat16 products", 2.0, 2.0, "counted",
             "data sheets: bfloat16 over TF32, and bytes of weights"),
        Rung("dense -> mixture of experts of equal quality", flops, flops, "published",
             "FLOPs a token of Llama 3.1 405B over V3's, counted; that V3 is its equal is the "
             "report's Table 6"),
        Rung("multi-head -> 8 groups of heads", 1.0, _best(grouped) / _best(full), "planned",
             f"tokens/s of a device that decodes as many rows of {CONTEXT:,} tokens as fit"),
        Rung("8 groups of heads -> latent attention", 1.0, _best(wide) / _best(grouped), "planned",
             "the same"),
        Rung("bfloat16 -> FP8", _time(wide) / _time(narrow), _best(narrow) / _best(wide),
             "planned", "a step on 2,048 H800; decoding as above"),
        Rung("one token -> multi-token prediction", 1 / mtp, 1.8, "published",
             "FLOPs of the module, counted; 1.8 times the tokens/s, V3 report sec. 5.4.3"),
        Rung("1F1B -> DualPipe", _time(narrow, "1f1b") / _time(narrow), 1.0, "planned",
             "a step on 2,048 H800, exchanges hidden by the pairs alone"),
    ]


def product(rungs: Sequence[Rung]) -> tuple[float, float]:
    """All factors together, of training and of serving."""
    return math.prod(r.training for r in rungs), math.prod(r.serving for r in rungs)


def served() -> list[Served]:
    """A node's tokens/s and price: prompts over 32 devices, answers over 144."""
    v3, hour = _v3(), 8 * PRICES["h800"][0]
    prompts = 8 * serving.read(with_fields(v3, parallel={"expert": 32}), site.parse("h800:32"),
                               4096)
    answers = 8 * _best(v3)

    def priced(name: str, bound: float, online: float) -> Served:
        return Served(name, bound, online, hour / (online * 3600 / 1e6))

    return [priced("prompts, cache hits left out", prompts, ONLINE["prefill"] * (1 - HITS)),
            priced("answers", answers, ONLINE["decode"])]


def _v3() -> RunConfig:
    return with_fields(load("deepseek_v3"), train={
        "batch_size_start": None, "batch_size_ramp_steps": 0, "microbatches": 120})


def _llama() -> ModelConfig:
    """Llama 3.1 405B, whose report says these sizes (arXiv 2407.21783, Table 3)."""
    return ModelConfig(vocab=128256, d_model=16384, layers=126, dense_layers=126, dense_dim=53248,
                       attention=GQAConfig(heads=128, kv_heads=8, head_dim=128), moe=None,
                       mtp_depth=0)


def _with_heads(run: RunConfig, count: int) -> RunConfig:
    """V3 with so many heads of keys and values of its own size instead of latents."""
    attention = GQAConfig(heads=128, kv_heads=count, head_dim=128)
    return dataclasses.replace(run, model=dataclasses.replace(run.model, attention=attention))


def _time(run: RunConfig, schedule: str = "dualpipe") -> float:
    """Seconds of a step in V3's layout."""
    made = with_fields(run, parallel={"pipe": 16, "expert": 64, "expert_nodes": 8, "data": 2,
                                      "schedule": schedule})
    return step.estimate(made, site.parse("h800:2048"), STACKS["deepseek"]).step


def _best(run: RunConfig) -> float:
    """Tokens/s of a device that decodes as many rows as fit beside its weights."""
    unit, made = site.Site("h800", UNIT), with_fields(run, parallel={"expert": UNIT, "pipe": 1})
    empty = serving.decode(made, unit, 1, CONTEXT)
    row = CONTEXT * cached_numbers(run.model) * serving.CACHED_BYTES * run.model.layers
    rows = max(1, math.floor((0.9 * empty.limit - empty.weight_bytes) / row))
    return rows / serving.decode(made, unit, rows, CONTEXT).step
