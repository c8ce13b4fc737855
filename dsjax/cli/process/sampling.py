"""Flags of commands that let a model choose tokens."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from dsjax.config.fields import seed_in_range
from dsjax.config.flags.refusal import typed_as

if TYPE_CHECKING:  # jax costs a second to import
    from dsjax.infer import Sampling


@dataclass(frozen=True)
class SamplingFlags:
    """The choice of each token."""

    temperature: float = 0.8
    """Logits are divided by it; 0 is greedy."""
    top_p: float = 1.0
    """Choose among the smallest set of likeliest tokens that has this much of the mass."""
    top_k: int | None = None
    """Choose among so many of the likeliest tokens."""
    min_p: float = 0.0
    """Choose among tokens that have at least this share of the likeliest one's probability."""
    presence_penalty: float = 0.0
    """Taken from the logit of every token that the continuation holds."""
    frequency_penalty: float = 0.0
    """Taken from a token's logit as many times as the continuation holds it."""
    repetition_penalty: float = 1.0
    """Logits of tokens of prompt and continuation are divided by it, negative ones multiplied."""
    seed: int = 0
    """Seed of the choices."""


def sampling(flags: SamplingFlags, max_new_tokens: int, **more: Any) -> Sampling:
    """The request that flags ask for; refuses what is no distribution by the flag's name.

    more: fields of `Sampling` that are no flags, or differ from them.
    """
    from dsjax.infer import Sampling

    seed_in_range(flags.seed, "--seed ")
    given = asdict(flags) | {"max_new_tokens": max_new_tokens} | more
    with typed_as(*asdict(flags), "max_new_tokens"):
        return Sampling(**given)
