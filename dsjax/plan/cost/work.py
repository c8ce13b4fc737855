"""Work of one token in one layer, forward: FLOPs by kind of product, and bytes through memory.

Counted from the Specs, as dsjax.model.count does. A backward pass is two products for each of the
forward's (input gradient B, weight gradient W), and 2.5 times the FLOPs of scores and values. What
moves through memory beside products (norms, residual sums, rotation, SwiGLU, quantization,
permutation of tokens) is counted by the arrays that are read and written once each, as kernels that
fuse what lies side by side do it.

Letters: D model, H heads, F expert hidden, K experts per token.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from dataclasses import dataclass

from dsjax import params
from dsjax.config.model import MLAConfig, ModelConfig, MoEConfig
from dsjax.model import transformer
from dsjax.params import Spec

WIDE = 2
"""Bytes of a number of the residual stream: bfloat16."""
BACKWARD_CORE = 2.5
"""FLOPs of the backward pass of scores and values over the forward's: five products for two."""


@dataclass(frozen=True)
class Layer:
    """One layer of a kind; of a token, forward."""

    is_moe: bool
    product: float
    """FLOPs of products of the run's precision."""
    wide: float
    """FLOPs of products that stay in bfloat16 or float32: the router's."""
    core: float
    """FLOPs of scores and values, causal."""
    moved: float
    """Bytes read and written beside the operands of products."""
    shared: int
    """Numbers in product matrices that every device of a stage holds."""
    routed: int
    """Numbers in routed experts, all of them."""

    @property
    def flops(self) -> float:
        """All FLOPs."""
        return self.product + self.wide + self.core


@dataclass(frozen=True)
class Work:
    """The layers of a model, MTP modules last, and what stands at its ends."""

    layers: tuple[Layer, ...]  # one for each layer
    head: float
    """FLOPs of one use of the head."""
    heads: int
    """Uses of the head: the main model's and each MTP module's."""
    numbers: int
    """Parameters in all, MTP modules included."""
    ends: int
    """Numbers in embedding, head and final norm."""


@functools.lru_cache(maxsize=16)
def of(cfg: ModelConfig, length: int, operand_bytes: int) -> Work:
    """Work of a model on rows of `length` tokens, with product operands of so many bytes."""
    specs = transformer.specs(cfg)
    layers = []
    for stack in cfg.stacks:
        one = _layer(cfg, specs.stacks[stack.name], stack.count, stack.is_moe, length,
                     operand_bytes)
        layers += [one] * stack.count
    if cfg.mtp_depth:
        layers += [_module(layers[-1], cfg)] * cfg.mtp_depth
    ends = params.size(dataclasses.replace(specs, stacks={}, mtp=None))
    return Work(tuple(layers), 2.0 * cfg.d_model * cfg.vocab, 1 + cfg.mtp_depth,
                params.size(specs), ends)


def _module(block: Layer, cfg: ModelConfig) -> Layer:
    """An MTP module: a block, and the product that joins embedding and hidden state."""
    join = 2 * cfg.d_model * cfg.d_model
    return dataclasses.replace(block, wide=block.wide + 2.0 * join, shared=block.shared + join)


def _layer(cfg: ModelConfig, stack: object, count: int, is_moe: bool, length: int,
           operand_bytes: int) -> Layer:
    sizes = {"shared": 0, "routed": 0, "router": 0, "": 0}
    for spec in params.leaves(stack):
        sizes[_kind(spec)] += math.prod(spec.shape) // count
    moe = cfg.moe if is_moe else None
    active = sizes["routed"] * (moe.experts_per_token / moe.experts if moe else 0)
    a = cfg.attention
    channels = a.qk_dim + a.value_dim if isinstance(a, MLAConfig) else 2 * a.head_dim
    return Layer(is_moe, 2.0 * (sizes["shared"] + active), 2.0 * sizes["router"],
                 2.0 * a.heads * channels * length / 2, moved(cfg, moe, operand_bytes),
                 sizes["shared"], sizes["routed"])


def _kind(spec: Spec) -> str:
    if spec.role in ("router_bias", "norm"):
        return ""
    return {"expert": "routed", "router": "router"}.get(spec.role, "shared")


def moved(cfg: ModelConfig, moe: MoEConfig | None, operand_bytes: int) -> float:
    """Bytes of a token that a layer reads and writes beside products' operands, forward."""
    d, a, narrow = cfg.d_model, cfg.attention, min(operand_bytes, WIDE)
    made = WIDE + narrow if narrow < WIDE else 0  # a number read wide and written narrow
    total = 2 * 2 * d * WIDE + 2 * 3 * d * WIDE + 2 * d * made  # norms, residual sums, their codes
    if isinstance(a, MLAConfig):
        latents = (a.q_rank or 0) + a.kv_rank + a.rope_dim
        queries, values = a.heads * a.qk_dim, a.heads * a.value_dim
        total += 4 * latents * WIDE + 2 * 4 * queries * WIDE  # normed; written, rotated, read
    else:
        queries = values = a.heads * a.head_dim
        total += 2 * 4 * queries * WIDE
    total += 2 * values * WIDE + 2 * values * WIDE + values * made  # values; what heads return
    hidden, paths = cfg.dense_dim, 0
    if moe is not None:
        paths = moe.experts_per_token
        hidden = (paths + moe.shared_experts) * moe.expert_dim
    total += 4 * hidden * WIDE + hidden * WIDE + 2 * hidden * narrow  # gate and up; SwiGLU
    return total + paths * d * (3 * narrow + 2 * WIDE)  # there and back: gathered, summed
