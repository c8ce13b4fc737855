"""GRPO's loss of a token, as dsjax.ops.token_loss takes one: R1 eq. 1 and what came after it.

    -(min(rho A, clip(rho) A) * factor) + beta * KL(policy || reference), times the token's weight

`factor` holds what multiplies the surrogate alone: truncated importance weights, and 0 for outputs
that off-policy masking drops. Each position reads itself: what belongs to an output is made before
and given to each of its tokens, so that the loss is computed in chunks, on any mesh, in any cut.

Axes: B outputs, T tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import jax.numpy as jnp
from jax import Array

from dsjax.errors import UserError
from dsjax.ops.token_loss import Targets, TokenLoss
from dsjax.rl.objective import kl, ratio


@dataclass(frozen=True)
class Objective:
    """The choices that GRPO leaves; the default is R1's first stage of RL (R1 report, arXiv v2)."""

    clip_low: float = ratio.R1_CLIP
    """The ratio is cut at 1 - clip_low from below."""
    clip_high: float = ratio.R1_CLIP
    """And at 1 + clip_high from above."""
    kl_weight: float = 0.001
    """Beta; 0 needs no reference."""
    kl: Literal["k3", "unbiased"] = "k3"
    """R1's estimate, or V3.2's with the KL's own gradient."""
    ratio: Literal["token", "sequence"] = "token"
    """A ratio for each token, or GSPO's one for each output."""

    def __post_init__(self) -> None:
        """Refuse numbers that make no loss."""
        for name in ("clip_low", "clip_high", "kl_weight"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(f"Objective.{name}={getattr(self, name)} is not a number from 0 "
                                "on; R1 has clips of 10 and a KL weight of 0.001")
        for name, known in (("kl", ("k3", "unbiased")), ("ratio", ("token", "sequence"))):
            if getattr(self, name) not in known:
                raise UserError(f"Objective.{name}={getattr(self, name)!r} is unknown; choose "
                                f"{name} from {list(known)}")


def targets(ids: Array, weights: Array, **known: Array) -> Targets:
    """Hand each token what its loss reads.

    ids [B, T] int32, weights [B, T] of dsjax.rl.objective.weights. known, each [B], [B, 1] or
    [B, T]: `old` and `advantages`; `reference` for a KL; `factor`, 1 where it is left out;
    `sequence`, the value of `sequence_ratio`, for GSPO's ratio.
    """
    extra = {name: jnp.broadcast_to(values.reshape(ids.shape[0], -1), ids.shape)
             for name, values in known.items()}
    extra.setdefault("factor", jnp.ones_like(weights))
    return Targets(ids, weights, extra)


def token_loss(cfg: Objective) -> TokenLoss:
    """The loss of each token, times its weight: log-probabilities and `targets` -> as they are.

    Raises:
        UserError: the targets lack what the objective reads.
    """
    names = ["old", "advantages", "factor"]
    names += ["reference"] if cfg.kl_weight else []
    names += ["sequence"] if cfg.ratio == "sequence" else []

    def loss(logprobs: Array, targets: Targets) -> Array:
        if missing := [name for name in names if name not in targets.extra]:
            raise UserError(f"the objective reads {', '.join(missing)}, and the rollout has "
                            f"{', '.join(sorted(targets.extra))}; give it to targets()")
        counts = targets.weights != 0
        now = jnp.where(counts, logprobs, 0.0)
        read = {name: jnp.where(counts, targets.extra[name], 0.0) for name in names}
        rho = (ratio.token_ratio(now, read["old"]) if cfg.ratio == "token"
               else ratio.sequence_ratio_by_token(now, read["sequence"]))
        gain = ratio.clipped_surrogate(rho, read["advantages"], cfg.clip_low, cfg.clip_high)
        each = -gain * read["factor"]
        if cfg.kl_weight:
            away = (kl.k3(now, read["reference"]) if cfg.kl == "k3"
                    else kl.unbiased(now, read["reference"], read["old"]))
            each += cfg.kl_weight * away
        return each * jnp.where(counts, targets.weights, 0.0)

    return loss
