"""Settings and sizes of an engine, and the requests that they can never serve."""

from __future__ import annotations

from dataclasses import dataclass

from dsjax.errors import UserError


@dataclass(frozen=True)
class Setting:
    """Settings of serving; none of them but `draft` and `page_dtype` changes a token, but for
    float32's rounding where a prompt is read."""

    slots: int = 16
    """Rows that read their prompt or decode at once, of each rank."""
    max_len: int | None = None
    """Positions of a request, prompt and new tokens; None is the model's context."""
    pages: int | None = None
    """Pages of the cache, of each rank; None has room for every slot's longest request."""
    page_size: int = 32
    """Positions of a page."""
    chunk: int = 256
    """Tokens of a prompt that are read at once."""
    budget: int | None = None
    """Tokens of a rank's step, of prompts and of rows that decode; None has room for every slot's
    pass and for a piece of a prompt beside them."""
    max_queue: int = 256
    """Requests that wait at most."""
    draft: bool = False
    """Let the model's MTP modules draft."""
    page_dtype: str = "activations"
    """`fp8` holds latents in 8 bits."""
    is_deterministic: bool = False
    """Read prompts by the programs that decode, so that every bit is what it is
    elsewhere: after a prefix hit, a preemption, in pieces of another size."""
    top_logprobs: int = 20
    """Likeliest tokens whose log-probabilities can be asked for."""
    keep_routes: bool = False
    """Hand out each request's experts with its last output, for a trainer to follow."""
    redundant_experts: int = 0
    """Copies of busy experts, all together, over those of one copy each."""


@dataclass(frozen=True)
class Config:
    """Sizes of an engine."""

    slots: int
    """Rows that read their prompt or decode at once."""
    budget: int
    """Tokens of a step."""
    chunk: int
    """Tokens of a piece of a prompt."""
    page_size: int
    """Positions of a page."""
    pages: int
    """Pages of the cache."""
    max_queue: int
    """Rows that may wait; a request that would be beyond is refused."""
    max_len: int
    """Positions of a request, prompt and new tokens."""
    depth: int = 0
    """Tokens drafted in a pass."""

    def __post_init__(self) -> None:
        """Refuse sizes with which requests could wait forever."""
        for name in ("slots", "chunk", "page_size", "pages", "max_queue", "max_len"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)} serves nothing; use at least 1")
        if self.depth < 0:
            raise UserError(f"depth={self.depth} is no count of drafts; use 0 for none")
        a_pass = self.depth + 1
        least = (self.slots - 1) * a_pass + max(self.chunk, a_pass)
        if self.budget < least:
            raise UserError(
                f"budget={self.budget} has no room for {self.slots} rows that decode {a_pass} "
                f"tokens, or one less and a chunk of {self.chunk}; use at least {least}"
            )

    def refusal(self, prompt_len: int, max_new_tokens: int) -> str:
        """Say why a request can never be served, whoever else is; empty where it can."""
        total = prompt_len + max_new_tokens
        if total > self.max_len:
            return (f"the prompt has {prompt_len:,} tokens and max_new_tokens={max_new_tokens:,} "
                    f"asks for {total:,} positions, but at most {self.max_len:,} are served; "
                    "shorten the prompt or lower max_new_tokens")
        pages = pages_of(total, self.page_size, self.depth)
        if pages > self.pages:
            return (f"{total:,} positions need {pages:,} pages of {self.page_size}, but the cache "
                    f"has {self.pages:,}; shorten the prompt or lower max_new_tokens")
        return ""


def pages_of(positions: int, page_size: int, depth: int) -> int:
    """Pages of a request alone: its newest token needs none, a pass may be prepared too far."""
    return -(-(positions - 1 + 2 * depth) // page_size)
