"""Settings that parameter shapes do not say: head splits, rotary settings, routing rules."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ReferenceConfig:
    """Names as in the reports; `yarn` is None or a dict with the keys factor, original_length,
    beta_fast, beta_slow, mscale, mscale_all_dim."""

    heads: int
    nope: int
    rope: int = 0
    value: int = 0
    q_rank: int | None = None
    kv_rank: int = 0
    theta: float = 10000.0
    yarn: dict | None = None
    eps: float = 1e-6
    latent_eps: float = 1e-6
    experts: int = 0
    experts_per_token: int = 0
    groups: int = 1
    groups_per_token: int = 1
    group_score: str = "top2"  # "top2" (V3) or "max" (V2)
    score: str = "sigmoid"  # "sigmoid" (V3) or "softmax" (V2)
    normalize: bool = True
    scale: float = 1.0
    mtp_depth: int = 0

    def __post_init__(self) -> None:
        if self.group_score not in ("top2", "max") or self.score not in ("sigmoid", "softmax"):
            raise ValueError(
                f"group_score={self.group_score!r}, score={self.score!r}; choose top2 or max, "
                "sigmoid or softmax"
            )
        if self.experts % self.groups:
            raise ValueError(f"experts={self.experts} is not divisible by groups={self.groups}")
