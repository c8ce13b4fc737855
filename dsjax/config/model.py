"""Sizes and choices of a model, and nothing about machines (V3 report sec. 2 and 4.2).

Every class is frozen and validates itself at construction in one sentence: cause, values, remedy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Literal

from dsjax.config.fields import between, choices, counted, well_typed


def _normed(owner: str, **values: int | None) -> None:
    """Refuse a lone channel where an RMSNorm is taken: it becomes its sign, and learns nothing."""
    for name, value in values.items():
        if value == 1:
            raise ValueError(f"{owner}.{name}=1 leaves RMSNorm one channel, of which only the sign "
                             "passes: what makes it would never train; use at least 2")


EPSILONS = (1e-20, 1.0, "use 1e-6")
"""Below, the gradient of RMSNorm at a row of zeros is not finite in float32."""


@dataclass(frozen=True)
class YarnConfig:
    """YaRN's stretch of the rotary frequencies for long contexts (V3 report sec. 4.3)."""

    factor: float = 40.0
    """s: how many times longer than `original_length` a context may become."""
    original_length: int = 4096
    """The context length the frequencies were trained at."""
    beta_fast: float = 32.0
    """Rotations over the original length above which a frequency stays as it is."""
    beta_slow: float = 1.0
    """Rotations below which a frequency is divided by the whole factor."""
    mscale: float = 1.0
    """Scale of cos and sin is m(mscale) / m(mscale_all_dim), m(c) = 0.1 c ln(factor) + 1."""
    mscale_all_dim: float = 1.0
    """The softmax scale is multiplied by m(mscale_all_dim) squared."""

    def __post_init__(self) -> None:
        """Refuse stretches that shrink and ramps that run backwards."""
        well_typed(self)
        if self.factor < 1:
            raise ValueError(f"YarnConfig.factor={self.factor} would shrink the context; use >= 1")
        if self.beta_fast < self.beta_slow:
            raise ValueError(
                f"YarnConfig.beta_fast={self.beta_fast} is below beta_slow={self.beta_slow}; "
                "the report uses 32 and 1"
            )
        counted("YarnConfig", original_length=self.original_length)
        for name in ("beta_slow", "mscale", "mscale_all_dim"):
            value = getattr(self, name)
            if value < 0 or (name == "beta_slow" and value == 0):
                raise ValueError(f"YarnConfig.{name}={value} is not above 0; the report uses 1")
        if self.original_length <= 2 * math.pi * self.beta_slow:
            raise ValueError(
                f"YarnConfig.original_length={self.original_length} is too short for any pair to "
                f"turn beta_slow={self.beta_slow} times; use at least "
                f"{math.floor(2 * math.pi * self.beta_slow) + 1}, or a smaller beta_slow"
            )


@dataclass(frozen=True)
class RopeConfig:
    """Rotary position embedding on interleaved pairs of channels."""

    theta: float = 10000.0
    """Base of the geometric series of frequencies."""
    yarn: YarnConfig | None = None
    """Long-context stretch; None for pre-training at the original length."""

    def __post_init__(self) -> None:
        """Refuse a base that gives no series."""
        well_typed(self)
        if self.theta <= 1:
            raise ValueError(f"RopeConfig.theta={self.theta} must be above 1; use 10000")


@dataclass(frozen=True)
class MLAConfig:
    """Multi-head latent attention (V3 report sec. 2.1.1)."""

    heads: int
    """n_h: attention heads."""
    kv_rank: int
    """d_c: size of the latent that keys and values are made from, and that decoding caches."""
    nope_dim: int
    """d_h: channels of a head's query and key without position."""
    rope_dim: int
    """d_h^R: channels with rotary position; the key's are shared by all heads."""
    value_dim: int
    """Channels of a head's value."""
    q_rank: int | None = None
    """d_c': size of the query latent; None projects queries directly (V2-Lite)."""
    latent_norm_eps: float = 1e-6
    """Epsilon of the RMSNorms on both latents: DeepSeek's modeling_deepseek.py gives them none, and
    so takes its RMSNorm's default, whatever rms_norm_eps says (Moonlight's is 1e-5)."""

    def __post_init__(self) -> None:
        """Refuse sizes that are not positive and odd rotary channels."""
        well_typed(self)
        counted(
            "MLAConfig",
            heads=self.heads,
            kv_rank=self.kv_rank,
            nope_dim=self.nope_dim,
            rope_dim=self.rope_dim,
            value_dim=self.value_dim,
            q_rank=1 if self.q_rank is None else self.q_rank,
        )
        _normed("MLAConfig", kv_rank=self.kv_rank, q_rank=self.q_rank)
        between(self, "latent_norm_eps", *EPSILONS)
        if self.rope_dim % 2:
            raise ValueError(f"MLAConfig.rope_dim={self.rope_dim} is odd; make it even for pairs")

    @property
    def qk_dim(self) -> int:
        """Channels a score is summed over."""
        return self.nope_dim + self.rope_dim


@dataclass(frozen=True)
class GQAConfig:
    """Grouped-query attention; `kv_heads == heads` is the standard multi-head attention."""

    heads: int
    """Query heads."""
    kv_heads: int
    """Key-value heads; query head h reads head h // (heads / kv_heads)."""
    head_dim: int
    """Channels of a head; all of them are rotated."""

    def __post_init__(self) -> None:
        """Refuse groups of unequal size and odd rotary channels."""
        well_typed(self)
        counted("GQAConfig", heads=self.heads, kv_heads=self.kv_heads, head_dim=self.head_dim)
        if self.heads % self.kv_heads:
            raise ValueError(
                f"GQAConfig.heads={self.heads} is not divisible by kv_heads={self.kv_heads}; "
                f"choose kv_heads from {choices(self.heads, self.kv_heads)}"
            )
        if self.head_dim % 2:
            raise ValueError(f"GQAConfig.head_dim={self.head_dim} is odd; make it even for pairs")


@dataclass(frozen=True)
class MoEConfig:
    """DeepSeekMoE: routed experts, shared experts and the rule that chooses (V3 sec. 2.1.2)."""

    experts: int
    """N_r: routed experts."""
    experts_per_token: int
    """K_r: routed experts each token visits."""
    expert_dim: int
    """Hidden channels of one expert."""
    shared_experts: int = 1
    """N_s: experts every token visits, held as one SwiGLU of that many times the hidden size."""
    score: Literal["sigmoid", "softmax"] = "sigmoid"
    """Affinity: V3 uses a sigmoid per expert, V2 a softmax over experts."""
    groups: int = 1
    """Groups of experts (a group is a node in V3's deployment)."""
    groups_per_token: int = 1
    """M: groups a token may choose experts from."""
    group_score: Literal["top2", "max"] = "top2"
    """Score of a group: the sum of its two best biased affinities (V3), or the best one (V2)."""
    is_normalized: bool = True
    """Divide the chosen affinities by their sum (V3) before scaling."""
    scale: float = 1.0
    """Factor on the routed experts' weights (V3 2.5, V2 16)."""
    has_bias: bool = True
    """Steer the choice by a selection bias (auxiliary-loss-free balancing)."""
    capacity_factor: float | None = None
    """None drops no token (V3); in training a number keeps ceil(factor * T * K / E) of a
    microbatch's T tokens an expert, the heaviest first, and drops the rest (V2, for ablations: the
    one thing that depends on the number of microbatches); evaluation and generation drop none."""

    def __post_init__(self) -> None:
        """Refuse group layouts that do not divide or cannot supply K experts."""
        well_typed(self)
        counted(
            "MoEConfig",
            experts=self.experts,
            experts_per_token=self.experts_per_token,
            expert_dim=self.expert_dim,
            groups=self.groups,
            groups_per_token=self.groups_per_token,
            shared_experts=self.shared_experts + 1,
        )
        if self.experts % self.groups:
            raise ValueError(
                f"MoEConfig.experts={self.experts} is not divisible by groups={self.groups}; "
                f"choose groups from {choices(self.experts, self.groups)}"
            )
        if self.groups_per_token > self.groups:
            raise ValueError(
                f"MoEConfig.groups_per_token={self.groups_per_token} exceeds groups={self.groups}; "
                f"choose at most {self.groups}"
            )
        open_experts = self.experts // self.groups * self.groups_per_token
        if self.experts_per_token > open_experts:
            raise ValueError(
                f"MoEConfig.experts_per_token={self.experts_per_token} exceeds the {open_experts} "
                f"experts of {self.groups_per_token} of {self.groups} groups; open more groups or "
                "choose fewer"
            )
        if self.group_score == "top2" and self.groups > 1 and self.experts // self.groups < 2:
            raise ValueError(
                f"MoEConfig.group_score='top2' needs two experts a group, but "
                f"experts={self.experts} in groups={self.groups} leaves one; use group_score='max'"
            )
        if self.capacity_factor is not None and not self.capacity_factor > 0:
            raise ValueError(
                f"MoEConfig.capacity_factor={self.capacity_factor} would drop every token; "
                "use None (drop nothing) or a number above 0"
            )
        self._refuse_constant_weights()

    def _refuse_constant_weights(self) -> None:
        """Refuse routers whose experts weigh the same whatever they say, or nothing: no gradient
        would reach them, and they would never learn."""
        if self.experts_per_token == 1 and self.is_normalized:
            raise ValueError(
                "MoEConfig.experts_per_token=1 divides the one expert's affinity by itself, so the "
                "router gets no gradient and never learns; use "
                "is_normalized=False, or two experts and more per token"
            )
        if self.experts == 1 and self.score == "softmax":
            raise ValueError(
                "MoEConfig.experts=1 weighs 1 by softmax, whatever the router says, so it never "
                "learns; use more experts, or score='sigmoid'"
            )
        between(self, "scale", 1e-6, 1e6, "V3 uses 2.5 and V2 16")


@dataclass(frozen=True)
class Stack:
    """Neighboring layers of one kind: their parameters are stacked, and one scan runs them."""

    name: str
    """First word of the names of its leaves."""
    count: int
    """Layers."""
    is_moe: bool
    """True if their feed-forward is a mixture of experts."""


@dataclass(frozen=True)
class ModelConfig:
    """A DeepSeek-V2/V3 language model, or one of the ablations that stand beside it."""

    vocab: int
    """V: rows of the embedding and columns of the head."""
    d_model: int
    """d: channels of the residual stream."""
    layers: int
    """L: transformer blocks of the main model."""
    dense_layers: int
    """Leading blocks whose feed-forward is one dense SwiGLU (all of them when `moe` is None)."""
    dense_dim: int
    """Hidden channels of the dense SwiGLU."""
    attention: MLAConfig | GQAConfig
    """Latent attention, or grouped-query attention for ablations."""
    moe: MoEConfig | None = None
    """The experts of the other blocks; None is a dense model."""
    mtp_depth: int = 0
    """J: multi-token prediction modules, each one more block."""
    rope: RopeConfig = field(default_factory=RopeConfig)
    """Rotary frequencies."""
    norm_eps: float = 1e-6
    """Epsilon of every RMSNorm but those of the latents, see MLAConfig."""
    init_std: float = 0.006
    """Standard deviation of every matrix at the start (V3 report sec. 4.2)."""

    def __post_init__(self) -> None:
        """Refuse layer counts that contradict each other."""
        well_typed(self)
        counted(
            "ModelConfig",
            vocab=self.vocab,
            d_model=self.d_model,
            layers=self.layers,
            dense_dim=self.dense_dim,
        )
        if not 0 <= self.dense_layers <= self.layers:
            raise ValueError(
                f"ModelConfig.dense_layers={self.dense_layers} is not between 0 and "
                f"layers={self.layers}; choose one that is"
            )
        if self.moe is None and self.dense_layers != self.layers:
            raise ValueError(
                f"ModelConfig.moe=None leaves {self.layers - self.dense_layers} blocks without a "
                f"feed-forward; set dense_layers={self.layers} or give them experts"
            )
        _normed("ModelConfig", d_model=self.d_model)
        if self.vocab == 1:
            raise ValueError("ModelConfig.vocab=1 leaves nothing to predict; use at least 2")
        between(self, "norm_eps", *EPSILONS)
        between(self, "init_std", 1e-6, 100.0, "V3 uses 0.006")
        if self.mtp_depth < 0:
            raise ValueError(f"ModelConfig.mtp_depth={self.mtp_depth} is negative; use 0 for none")
        counted("ModelConfig", 0, mtp_depth=self.mtp_depth)
        if self.moe is not None and not self.moe_layers + self.mtp_depth:
            raise ValueError(
                f"ModelConfig.dense_layers={self.dense_layers} of {self.layers} layers leave no "
                "block for experts; use fewer, or no experts (moe=None)"
            )

    @property
    def stacks(self) -> tuple[Stack, ...]:
        """Stacks of the main model, in the order in which a token passes them."""
        dense = Stack("dense", self.dense_layers, is_moe=False)
        moe = Stack("moe", self.layers - self.dense_layers, is_moe=True)
        return tuple(stack for stack in (dense, moe) if stack.count)

    @property
    def moe_layers(self) -> int:
        """Blocks of the main model whose feed-forward is a mixture of experts."""
        return sum(stack.count for stack in self.stacks if stack.is_moe)

    def stack_of(self, layer: int) -> tuple[Stack, int]:
        """Find the stack of a layer of the main model, and the layer's place in it."""
        start = 0
        for stack in self.stacks:
            if layer < start + stack.count:
                return stack, layer - start
            start += stack.count
        raise IndexError(f"layer {layer} lies beyond the {self.layers} layers of the main model")


def dropless(cfg: ModelConfig) -> ModelConfig:
    """The model outside training: no expert's capacity is limited (V2 report sec. 2.2.4)."""
    if cfg.moe is None or cfg.moe.capacity_factor is None:
        return cfg
    return replace(cfg, moe=replace(cfg.moe, capacity_factor=None))
