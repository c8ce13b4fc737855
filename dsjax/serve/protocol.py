"""The part of an engine that the door uses.

The engine owns the device: one thread calls `run`, every other method may be called from any
thread. A request's `on_output` is called by the engine's thread and must not block it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Literal, Protocol

from dsjax.config.model import ModelConfig
from dsjax.data.tokenizers.tokenizer import Tokenizer
from dsjax.infer.sample import Sampling

Finish = Literal["stop", "length", "cancelled", "error"]


class Output(Protocol):
    """Tokens that a request got since its last output."""

    @property
    def tokens(self) -> tuple[int, ...]:
        """Ids, in order; the id that ended the request is the last."""

    @property
    def logprobs(self) -> tuple[float, ...]:
        """Log-probability of each token, before temperature."""

    @property
    def top(self) -> tuple[tuple[tuple[int, float], ...], ...]:
        """The likeliest ids of each token's place with their log-probabilities, if asked for."""

    @property
    def finish_reason(self) -> Finish | None:
        """None while more will come."""

    @property
    def error(self) -> str:
        """A sentence, where the reason is `error`."""


class Stats(Protocol):
    """The state of an engine, and counts since it was made; `metrics` says what each is."""

    @property
    def running(self) -> int: ...  # noqa: D102
    @property
    def waiting(self) -> int: ...  # noqa: D102
    @property
    def pages_free(self) -> int: ...  # noqa: D102
    @property
    def pages_owned(self) -> int: ...  # noqa: D102
    @property
    def pages_cached(self) -> int: ...  # noqa: D102
    @property
    def prompt_tokens(self) -> int: ...  # noqa: D102
    @property
    def cached_tokens(self) -> int: ...  # noqa: D102
    @property
    def generated_tokens(self) -> int: ...  # noqa: D102
    @property
    def passes(self) -> int: ...  # noqa: D102
    @property
    def drafted(self) -> int: ...  # noqa: D102
    @property
    def accepted(self) -> int: ...  # noqa: D102
    @property
    def steps(self) -> int: ...  # noqa: D102
    @property
    def experts_busiest(self) -> float: ...  # noqa: D102
    @property
    def experts_busiest_in_order(self) -> float: ...  # noqa: D102
    @property
    def host_s(self) -> float: ...  # noqa: D102
    @property
    def total_s(self) -> float: ...  # noqa: D102


class Model(Protocol):
    """The model that an engine runs."""

    @property
    def cfg(self) -> ModelConfig:
        """Its config."""

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer its ids belong to."""


class Engine(Protocol):
    """Requests that share the steps of one model."""

    @property
    def max_len(self) -> int:
        """Positions of a request at most, prompt and answer together."""

    def add(self, prompt: Sequence[int], sampling: Sampling,
            on_output: Callable[[Output], None], top_logprobs: int = 0) -> int:
        """Queue a request and return its number; refuses with QueueFullError or a UserError."""

    def cancel(self, request: int) -> None:
        """End a request at the next step; one that has ended stays as it is."""

    def run(self, until: threading.Event) -> None:
        """Step until the event is set."""

    def stats(self) -> Stats:
        """Return the counts of now."""
