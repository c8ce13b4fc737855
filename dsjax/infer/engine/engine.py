"""The engine: requests in, tokens out; step after step of one plan a rank.

The host prepares a step while the device runs the one before: `step` plans, starts the programs,
and only then reads what the last step gave. What a row's tokens are depends on the row alone (see
`programs`): on its text, its seed and its sampling, never on who else is served.
"""

from __future__ import annotations

import collections
import itertools
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from dsjax.errors import QueueFullError, UserError
from dsjax.infer.decode import Given
from dsjax.infer.engine.asked import Piece, Text
from dsjax.infer.engine.config import Config
from dsjax.infer.engine.device import Device
from dsjax.infer.engine.experts import Loads
from dsjax.infer.engine.ranks import Ranks
from dsjax.infer.engine.request import (
    NOT_A_NUMBER,
    Arrive,
    Cancel,
    Chunk,
    Emitted,
    Event,
    Finish,
    OnOutput,
    Output,
    Plan,
    Request,
    Row,
    RowId,
    ending,
    top_of,
    until_end,
)
from dsjax.infer.sample import Sampling
from dsjax.model.transformer import TransformerParams

T = TypeVar("T")
@dataclass(frozen=True)
class Stats:
    """The engine at one moment, and what it did since it began."""
    running: int
    waiting: int
    pages_free: int
    pages_owned: int
    pages_cached: int
    prompt_tokens: int
    cached_tokens: int
    """Of those, found in pages of earlier requests."""
    generated_tokens: int
    passes: int
    """Rows of all decoding steps whose tokens were used."""
    drafted: int
    accepted: int
    steps: int
    experts_busiest: float
    """Tokens of the busiest device over the mean one among those that share the experts, mean over
    layers; 0 where one has them all, or nothing is measured yet."""
    experts_busiest_in_order: float
    """The same, had every expert one copy and were they placed in order."""
    host_s: float
    """Seconds in which the host prepared and took up steps."""
    total_s: float
    """Seconds of steps, waiting for the device included."""


@dataclass
class _Client:
    """Who waits for a request, and what was sent."""

    on_output: OnOutput
    top: int


class _Flight(NamedTuple):
    """A step that was started: whose rows by rank, and what they will give."""

    rows: list[list[RowId]]
    given: Given | None
    wants_top: bool
    tables: dict[RowId, tuple[int, ...]]
    """Pages of the rows, where routes are kept."""


@dataclass
class _Totals:
    prompt: int = 0
    cached: int = 0
    generated: int = 0
    passes: int = 0
    accepted: int = 0
    steps: int = 0
    host_s: float = 0.0
    total_s: float = 0.0


class Engine:
    """Serves requests of any number of threads; one thread calls `step` or `run`."""

    def __init__(self, device: Device):
        self.device, self.setting = device, device.setting
        self.max_len, self.slots = device.max_len, device.ranks * device.setting.slots
        self.ranks = Ranks(Config(
            slots=self.setting.slots, budget=device.budget, chunk=self.setting.chunk,
            page_size=self.setting.page_size, pages=device.pages,
            max_queue=self.setting.max_queue + self.slots,  # `add` refuses earlier
            max_len=self.max_len, depth=device.depth), device.ranks)
        self._inbox: collections.deque[Event] = collections.deque()
        self._events: list[Event] = []
        self._clients: dict[str, _Client] = {}
        self._numbers = itertools.count()
        self._flight: _Flight | None = None
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._totals = _Totals()
        self._loads = Loads(device)
        self._routes: dict[RowId, NDArray[np.int32]] = {}
        """Of rows whose pages were taken while the result that may end them was outstanding."""

    def add(self, prompt: Sequence[int], sampling: Sampling, on_output: OnOutput,
            top_logprobs: int = 0) -> int:
        """Queue a request; `on_output` is called by the stepping thread, the last time with a
        finish reason. Raises QueueFullError, or UserError for what can never be served.
        """
        self._check(prompt, sampling, top_logprobs)
        with self._lock:
            if len(self._clients) >= self.setting.max_queue + self.slots:
                raise QueueFullError(f"{len(self._clients)} requests are served or wait already; "
                                     "try again later")
            number = next(self._numbers)
            self._clients[str(number)] = _Client(on_output, top_logprobs)
            self._inbox.append(Arrive(Request(str(number), tuple(prompt), sampling, number)))
        self._wake.set()
        return number

    def cancel(self, request: int) -> None:
        """End a request; its pages are free with the next step."""
        self._inbox.append(Cancel(str(request)))
        self._wake.set()

    def _check(self, prompt: Sequence[int], sampling: Sampling, top: int) -> None:
        """Refuse in a sentence what can never be served."""
        if not len(prompt):
            raise UserError("the prompt has no tokens; start it with the end-of-text token")
        vocab = self.device.cfg.vocab
        if not 0 <= min(prompt) <= max(prompt) < vocab:
            raise UserError(f"the prompt has ids from {min(prompt)} to {max(prompt)}, but the "
                            f"model knows 0 to {vocab - 1}")
        if beyond := self.ranks.cfg.refusal(len(prompt), sampling.max_new_tokens):
            raise UserError(beyond)
        if not 0 <= top <= self.setting.top_logprobs:
            raise UserError(f"top_logprobs={top} is out of range; use 0 to "
                            f"{self.setting.top_logprobs}")

    def step(self) -> bool:
        """Plan a step and start it, then hand out what the last one gave; False if idle."""
        began = time.perf_counter()
        waited = 0.0
        plans = self._plan()
        flight = self._start(plans)
        last, self._flight = self._flight, flight
        if last is not None and last.given is not None:
            before = time.perf_counter()
            given = self.device.taken(last.given, last.wants_top)
            waited = time.perf_counter() - before
            routes = self._routes
            if self.setting.keep_routes:
                ended = [ending(map(self.ranks.find, rows), by_rank)
                         for rows, by_rank in zip(last.rows, given)]
                routes = self._routes_of(ended, last) | routes
            for rows, of_rank in zip(last.rows, given, strict=True):
                self._take(rows, of_rank, routes)
        is_busy = flight is not None or last is not None or bool(self._events)
        if is_busy:
            total = time.perf_counter() - began
            self._totals.steps += 1
            self._totals.total_s += total
            self._totals.host_s += total - waited
        self._loads.after(flight is not None, is_busy)
        return is_busy

    def run(self, until: threading.Event) -> None:
        """Step until told to end, sleeping where there is nothing to do."""
        while not until.is_set():
            self._wake.clear()
            if not self.step() and not self._inbox:
                self._wake.wait(0.05)

    def _plan(self) -> list[Plan]:
        """Give the schedulers what happened, and answer those whose part is over."""
        events, self._events = self._events, []
        while self._inbox:
            event = self._inbox.popleft()
            events.append(event)
            if isinstance(event, Cancel) and (client := self._clients.pop(event.id, None)):
                client.on_output(Output(finish_reason="cancelled"))
        plans = self.ranks.plan(events)
        for refused in (refused for plan in plans for refused in plan.refused):
            if client := self._clients.pop(refused.id, None):
                client.on_output(Output(finish_reason="error", error=refused.reason))
        return plans

    def _start(self, plans: list[Plan]) -> _Flight | None:
        """Start the programs of all ranks' plans, in their order."""
        if self.setting.keep_routes:
            self._routes = self._routes_of([plan.preempted for plan in plans], self._flight)
        if all(plan.is_empty for plan in plans):
            return None
        for pairs in _together(plan.copies for plan in plans):
            self.device.copy(pairs)
        for texts in _together(map(self._text, plan.admitted) for plan in plans):
            self.device.admit(texts)
        for pieces in _together(map(self._piece, plan.chunks) for plan in plans):
            self.device.read(pieces)
        ids = [[row.id for row in plan.rows] for plan in plans]
        if not any(ids):
            return _Flight(ids, None, False, {})
        rows = [[self._row(id) for id in of_rank] for of_rank in ids]
        asking = (self._clients.get(id[0]) for of_rank in ids for id in of_rank)
        wants_top = any(client is not None and client.top > 0 for client in asking)
        return _Flight(ids, self.device.advance(
            [[_slot(row) for row in of_rank] for of_rank in rows],
            [[row.table.pages for row in of_rank] for of_rank in rows], wants_top), wants_top,
            {row.id: tuple(row.table.pages) for of_rank in rows for row in of_rank
             if self.setting.keep_routes})

    def _routes_of(self, rows: list[list[RowId]],
                   flight: _Flight | None) -> dict[RowId, NDArray[np.int32]]:
        """Experts [S, L, K] of rows by rank that were in flight, from the pages they had there."""
        tables = {} if flight is None else flight.tables
        asked = [[id for id in of_rank if id in tables] for of_rank in rows]
        if not any(asked):
            return {}
        found = self.device.routes([[tables[id] for id in of_rank] for of_rank in asked])
        return {id: routes for of_rank, of_ids in zip(found, asked, strict=True)
                for id, routes in zip(of_ids, of_rank, strict=False)}

    def _row(self, id: RowId) -> Row:
        row = self.ranks.find(id)
        assert row is not None, f"{id} is planned but has ended"
        return row

    def _text(self, id: RowId) -> Text:
        """A row as it is admitted."""
        row = self._row(id)
        request = row.request
        self._totals.prompt += len(request.prompt)
        self._totals.cached += row.cached
        return Text(_slot(row), row.tokens, len(request.prompt), request.sampling, row.sample)

    def _piece(self, chunk: Chunk) -> Piece:
        return Piece(chunk.slot, self._row(chunk.id).table.pages, chunk.start, chunk.stop)

    def _take(self, rows: list[RowId], given: Given,
              routes: dict[RowId, NDArray[np.int32]]) -> None:
        """Hand out what a step gave the rows of a rank, and tell its scheduler."""
        totals = self._totals
        made = zip(rows, given.tokens.tolist(), given.count.tolist(), given.logprobs.tolist())
        for at, (id, tokens, count, logprobs) in enumerate(made):
            row = self.ranks.find(id)
            if row is None:
                continue  # it ended while the step ran
            new = tokens[:count]
            kept, reason = until_end(row, new)
            totals.passes += 1
            totals.accepted += len(new) - 1
            totals.generated += len(kept)
            self._events.append(Emitted(id, tuple(new)))
            if reason:
                self._events.append(Finish(id, reason))
            client = self._clients.get(id[0])
            if client is None:
                continue
            if reason:
                del self._clients[id[0]]
            client.on_output(Output(
                tuple(kept), tuple(logprobs[: len(kept)]), top_of(given, at, len(kept), client.top),
                reason, NOT_A_NUMBER if reason == "error" else "", routes.get(id)))

    def exchange(self, params: TransformerParams) -> None:
        """Serve with other parameters of the same model from here on; pages forget what they held.

        For the thread that steps, or when none does. See `Device.exchange` for what is copied.

        Raises:
            UserError: a request is under way, whose tokens would be of two models.
        """
        while not self._clients and self.step():
            pass  # a last pass that nobody asks for
        if self._clients:
            raise UserError(f"{len(self._clients)} requests are under way, and other parameters "
                            "would go on with them; wait until they end, or cancel them")
        self.device.exchange(params)
        self.ranks = Ranks(self.ranks.cfg, self.device.ranks)

    def expert_loads(self) -> list[list[float]] | None:
        """Tokens that chose each expert, by layer; None where that is not measured.

        For the thread that steps, or when none does.
        """
        self._loads.after(has_started=False, is_busy=False)
        loads = self._loads.logical
        return None if loads is None else loads.tolist()

    def stats(self) -> Stats:
        """Count what is served, and what was."""
        t, running = self._totals, self.ranks.running
        pages = [scheduler.pages for scheduler in self.ranks.schedulers]
        free, available = (sum(getattr(one, name) for one in pages)
                           for name in ("free", "available"))
        return Stats(
            running=running,
            waiting=len(self._clients) - running,
            pages_free=free,
            pages_owned=sum(one.count for one in pages) - available,
            pages_cached=available - free,
            prompt_tokens=t.prompt,
            cached_tokens=t.cached,
            generated_tokens=t.generated,
            passes=t.passes,
            drafted=t.passes * self.device.depth,
            accepted=t.accepted,
            steps=t.steps,
            experts_busiest=self._loads.busiest,
            experts_busiest_in_order=self._loads.busiest_in_order,
            host_s=t.host_s,
            total_s=t.total_s,
        )


def _together(by_rank: Iterable[Iterable[T]]) -> Iterator[list[T | None]]:
    """The first things of all ranks, then the second ones; None where a rank has fewer."""
    return map(list, itertools.zip_longest(*by_rank))


def _slot(row: Row) -> int:
    assert row.slot is not None, "an admitted row has a slot"
    return row.slot
