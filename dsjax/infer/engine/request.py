"""A request, its rows and its output; events that the scheduler is told, and plans that it gives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dsjax.errors import UserError
from dsjax.infer.decode import Given
from dsjax.infer.engine.pages import Table
from dsjax.infer.sample import NONE, Sampling

RowId = tuple[str, int]
"""A request's id and the number of one of its n samples, from 0."""


@dataclass(frozen=True)
class Request:
    """A prompt to continue n times."""

    id: str
    """A name that no other request has while a result of this one may still come."""
    prompt: tuple[int, ...]
    sampling: Sampling
    arrival: int
    """Number by which requests are served: the lowest first."""
    n: int = 1
    """Samples; each is a row of its own, and all share the prompt's pages."""

    def __post_init__(self) -> None:
        """Refuse what asks for nothing."""
        if not self.prompt:
            raise UserError("the prompt has no tokens; start it with the end-of-text token")
        if self.n < 1:
            raise UserError(f"n={self.n} asks for no sample; use at least 1")


@dataclass(eq=False, slots=True)
class Row:
    """One sample of a request, and how far it is."""

    request: Request
    sample: int
    order: tuple[int, int]
    """Arrival of the request, then the scheduler's own count; no two rows have the same."""
    limit: int
    """Tokens at which its length ends it."""
    tokens: list[int]
    """The prompt and what is known to follow."""
    leader: Row | None = None
    """The first sample, until this one was admitted: it computes the prompt for all."""
    slot: int | None = None
    table: Table = field(default_factory=Table)
    cached: int = 0
    """Positions that it found written when it got its slot; its first chunk starts there."""
    target: int = 0
    """Positions to write in chunks before it decodes."""
    computed: int = 0
    """Positions that planned chunks and reported passes write."""
    pending: list[int] = field(default_factory=list)
    """The most tokens that each outstanding result may have."""
    wanted: int = 1
    """Pages that it lacked when it was last tried; it is not tried with fewer."""
    finish_reason: str | None = None

    @property
    def id(self) -> RowId:
        """The name that events and plans have for it."""
        return self.request.id, self.sample

    @property
    def is_prefilling(self) -> bool:
        """True while it has a slot and chunks to come."""
        return self.slot is not None and self.computed < self.target


@dataclass(frozen=True)
class Arrive:
    """A request came; the next plan serves, queues or refuses it."""

    request: Request


@dataclass(frozen=True)
class Cancel:
    """Nobody waits for a request any more: all its samples end."""

    id: str


@dataclass(frozen=True)
class Emitted:
    """The result of one row of one planned step: the tokens that were chosen, at least one."""

    id: RowId
    tokens: tuple[int, ...]


@dataclass(frozen=True)
class Finish:
    """A row has all its tokens: a stop was met, or its length reached."""

    id: RowId
    reason: str


Event = Arrive | Cancel | Emitted | Finish


class Chunk(NamedTuple):
    """Positions start..stop-1 of a row to write, from `tokens[start:stop]`."""

    id: RowId
    slot: int
    start: int
    stop: int
    is_last: bool
    """True if the row decodes from the next plan on, with the token at `stop` as its newest."""


class Decode(NamedTuple):
    """One pass of a row from its newest token, which is at `position`, or before it where drafts of
    an outstanding pass are refused.
    """

    id: RowId
    slot: int
    position: int


class Refused(NamedTuple):
    """A request that is not served."""

    id: str
    reason: str
    """A sentence for who asked."""
    is_busy: bool
    """True if it can be served when fewer rows wait."""


@dataclass
class Plan:
    """A step."""

    admitted: list[RowId] = field(default_factory=list)
    """Rows that got their slot, whose text the device does not have yet."""
    copies: list[tuple[int, int]] = field(default_factory=list)
    """Pages (source, destination); no page is both."""
    chunks: list[Chunk] = field(default_factory=list)
    """At most one a row."""
    rows: list[Decode] = field(default_factory=list)
    preempted: list[RowId] = field(default_factory=list)
    refused: list[Refused] = field(default_factory=list)

    @property
    def is_empty(self) -> bool:
        """True if there is nothing to run."""
        return not (self.admitted or self.chunks or self.rows)


FinishReason = Literal["stop", "length", "cancelled", "error"]


@dataclass(frozen=True)
class Output:
    """Tokens of a request since its last output."""

    tokens: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    """Of the tokens, by the model's logits, before temperature, cuts and penalties."""
    top: tuple[tuple[tuple[int, float], ...], ...] = ()
    """Of each token the likeliest ids and their log-probabilities, as many as were asked for."""
    finish_reason: FinishReason | None = None
    error: str = ""
    """A sentence, where the reason is `error`."""
    routes: NDArray[np.int32] | None = None
    """[S, L, K] experts of the request's tokens, all but the last, where it ends and the engine
    keeps them; beyond is padding."""


OnOutput = Callable[[Output], None]


NOT_A_NUMBER = ("the model's logits are not numbers, so there is no token to choose; its "
                "parameters hold NaN or are too large: look at the loss of its training, or use "
                "an earlier checkpoint")


def top_of(given: Given, at: int, count: int,
         most: int) -> tuple[tuple[tuple[int, float], ...], ...]:
    """The likeliest ids, and their log-probabilities, of the first tokens of a row."""
    if not most or given.top_ids is None or given.top_logprobs is None:
        return ()
    return tuple(tuple(zip(given.top_ids[at, t, :most].tolist(),
                           given.top_logprobs[at, t, :most].tolist())) for t in range(count))


def until_end(row: Row, new: list[int]) -> tuple[list[int], FinishReason | None]:
    """Tokens up to a row's end, and why it ends there."""
    sampling = row.request.sampling
    had = len(row.tokens) - len(row.request.prompt)
    for i, token in enumerate(new):
        if token == NONE:
            return new[:i], "error"
        if token in sampling.stop_ids:
            return new[: i + 1], "stop"
        if had + i + 1 == sampling.max_new_tokens:
            return new[: i + 1], "length"
    return new, None


def ending(rows: Iterable[Row | None], given: Given) -> list[RowId]:
    """Rows of a rank that a step ends; None are those that have ended before."""
    made = zip(rows, given.tokens.tolist(), given.count.tolist())
    return [row.id for row, tokens, count in made
            if row is not None and until_end(row, tokens[:count])[1]]
