"""The ranks and whom each serves: every rank has a scheduler, pages and slots of its own.

A request waits at its place by arrival until some rank has a slot for it, and stays with that rank.
Among ranks about as free as the freest it goes to the one whose pages hold the most of its prompt's
beginning, then to the one with the fewest rows: a beginning that many share must not fill one rank
while others idle. One rank takes all at once, and its scheduler alone decides.

As the scheduler, this is deterministic and knows nothing of what a page holds.
"""

from __future__ import annotations

import collections
from collections.abc import Iterable

from dsjax.infer.engine.config import Config
from dsjax.infer.engine.request import Arrive, Cancel, Emitted, Event, Plan, Request, Row, RowId
from dsjax.infer.engine.scheduler import Scheduler


class Ranks:
    """Schedulers by rank, and the requests that no rank has yet."""

    def __init__(self, cfg: Config, count: int):
        self.cfg = cfg
        self.schedulers = [Scheduler(cfg) for _ in range(count)]
        self._rank: dict[str, int] = {}  # of requests that were given
        self._held: collections.deque[Request] = collections.deque()
        self._near = max(cfg.slots // 4, 1)  # rows by which ranks are about as free

    @property
    def running(self) -> int:
        """Rows that have a slot."""
        return sum(scheduler.running for scheduler in self.schedulers)

    def find(self, id: RowId) -> Row | None:
        """A row that has a rank and has not ended."""
        rank = self._rank.get(id[0])
        return None if rank is None else self.schedulers[rank].rows.get(id)

    def plan(self, events: Iterable[Event] = ()) -> list[Plan]:
        """Take events, in order, and plan the next step of every rank."""
        told: list[list[Event]] = [[] for _ in self.schedulers]
        for event in events:
            if isinstance(event, Emitted):
                if (rank := self._rank.get(event.id[0])) is not None:
                    told[rank].append(event)
            elif isinstance(event, Arrive):
                self._held.append(event.request)
            elif (rank := self._rank.get(_request(event))) is not None:
                told[rank].append(event)
            elif isinstance(event, Cancel):
                self._held = collections.deque(r for r in self._held if r.id != event.id)
        self._give(told)
        plans = [one.plan(news) for one, news in zip(self.schedulers, told, strict=True)]
        for event in (event for news in told for event in news):
            if isinstance(event, Emitted):
                continue  # it ends nothing
            id = _request(event)
            if id in self._rank and not self.schedulers[self._rank[id]].serves(id):
                del self._rank[id]
        return plans

    def _give(self, told: list[list[Event]]) -> None:
        """Give those that wait to ranks, in order, as long as one has a slot for the first."""
        if not self._held:
            return
        busy = [one.rows_after(news) for one, news in zip(self.schedulers, told, strict=True)]
        while self._held:
            request = self._held[0]
            rank = self._choose(request, busy)
            if rank is None:
                return
            self._held.popleft()
            told[rank].append(Arrive(request))
            # a name that is served already is its rank's to refuse
            self._rank.setdefault(request.id, rank)
            busy[rank] += request.n

    def _choose(self, request: Request, busy: list[int]) -> int | None:
        """The rank of a request, if one has slots for it; `busy` are each rank's rows."""
        if len(busy) == 1:
            return 0
        if request.id in self._rank:
            return self._rank[request.id]
        least = min(busy)
        if least and least + request.n > self.cfg.slots:
            return None
        near = [rank for rank, rows in enumerate(busy) if rows <= least + self._near
                and (not rows or rows + request.n <= self.cfg.slots)]
        found = {rank: self.schedulers[rank].pages.found(request.prompt) for rank in near}
        return max(near, key=lambda rank: (found[rank], -busy[rank], -rank))


def _request(event: Event) -> str:
    """The name of the request that an event is about."""
    if isinstance(event, Arrive):
        return event.request.id
    return event.id if isinstance(event, Cancel) else event.id[0]
