"""The next step, from what came since the last: which rows decode, which prompts go on, who waits.

First come, first served. Rows that decode go first, one pass each; what is left of the budget reads
prompts, in pieces that end at multiples of `chunk` from the prompt's first token, whatever the
budget leaves, so that a prompt is always cut the same way. A row that decodes has the pages of all
positions that its pass may write. If none is left for it, the row that arrived last gives up its
pages and its slot, and waits at its place by arrival. The first row is never preempted and every
accepted request fits alone, so some row always goes on.

The contract with the engine:

- Plans are run whole, in their order: admissions and copies first, then chunks and rows, which
  touch no page of each other but to read what earlier plans wrote. An event changes later plans
  only, so freed pages are written again after whatever was still under way.
- A text is read in chunks up to its newest token, which is always decoded, also after a prompt: all
  tokens are chosen in one place, and a preempted row goes on as if it had never stopped.
- Each row of a plan gives one Emitted, a row's own in their order. They may be late: a row is
  planned while one result is outstanding, not while two are. Steps can thus be prepared one ahead.
  Events of rows that ended are ignored.
- The host does not know yet what outstanding passes accept. `position` is then the furthest that
  the newest token can be, and pages reach far enough for it; the device counts for itself. Without
  drafts, or with nothing outstanding, `position` is exact.
- The engine ends rows with Finish, together with the Emitted that shows the end. A row is never
  planned beyond its `limit`.
- `rows` is read between a plan and the next. A table only grows while its row has its slot.

Deterministic, and nothing here knows what a page or a token holds.
"""

from __future__ import annotations

import heapq
import itertools
from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator
from operator import attrgetter

from dsjax.infer.engine.config import Config, pages_of
from dsjax.infer.engine.pages import Pages
from dsjax.infer.engine.request import (
    Arrive,
    Cancel,
    Chunk,
    Decode,
    Emitted,
    Event,
    Finish,
    Plan,
    Refused,
    Request,
    Row,
    RowId,
)

AHEAD = 2  # results of a row that may be outstanding: of the step that runs and of the next


ORDER = attrgetter("order")


class Scheduler:
    """Rows that wait and rows that run, and the pages that these have."""

    def __init__(self, cfg: Config):
        self.cfg = cfg
        self.pages = Pages(cfg.pages, cfg.page_size, ahead=cfg.depth)
        self.rows: dict[RowId, Row] = {}
        """All rows that have not ended."""
        self._samples: dict[str, set[int]] = {}  # of each request, those that have not ended
        self._waiting: list[Row] = []  # by order, as are those that run
        self._running: list[Row] = []
        self._slots = list(range(cfg.slots))  # a heap: low slots first, so that batches stay small
        self._count = itertools.count()
        # Modules make the last 2 depth positions again in each pass, from hidden states that must
        # have been computed for the row; their entries for a position are final once depth tokens
        # after it were accepted and a pass began after that. See dsjax.infer.speculative.
        self._tail = 2 * cfg.depth
        self._unsettled = cfg.depth + 1 if cfg.depth else 0

    @property
    def running(self) -> int:
        """Rows that have a slot."""
        return len(self._running)

    @property
    def is_idle(self) -> bool:
        """True if every request has ended."""
        return not self.rows

    def serves(self, id: str) -> bool:
        """True if a request has a row that has not ended."""
        return id in self._samples

    def rows_after(self, events: Iterable[Event]) -> int:
        """Rows that will be left when events that end some have been taken."""
        ended: set[RowId] = set()
        for event in events:
            if isinstance(event, Finish):
                ended.add(event.id)
            elif isinstance(event, Cancel):
                ended |= {(event.id, sample) for sample in self._samples.get(event.id, ())}
        return len(self.rows.keys() - ended)

    def plan(self, events: Iterable[Event] = ()) -> Plan:
        """Take events, in order, and plan the next step."""
        plan = Plan()
        for event in events:
            self._take(event, plan)
        self._plan_rows(plan)
        self._plan_chunks(plan)
        return plan

    def _take(self, event: Event, plan: Plan) -> None:
        match event:
            case Arrive(request):
                if refused := self._refusal(request):
                    plan.refused.append(refused)
                else:
                    self._enqueue(request)
            case Cancel(id):
                for sample in sorted(self._samples.get(id, ())):
                    self._end(self.rows[id, sample], "cancel")
            case Emitted(id, tokens) if id in self.rows:
                self._append(self.rows[id], tokens)
            case Finish(id, reason) if id in self.rows:
                self._end(self.rows[id], reason)

    def _refusal(self, request: Request) -> Refused | None:
        cfg, n = self.cfg, request.n
        most = min(cfg.slots, cfg.max_queue)
        waiting = len(self.rows) - len(self._running)
        is_busy, reason = False, ""
        if request.id in self._samples:
            reason = f"a request with id {request.id!r} is being served; use another id"
        elif n > most:
            reason = f"n={n} samples are more than run at once; use at most {most}"
        elif beyond := cfg.refusal(len(request.prompt), request.sampling.max_new_tokens):
            reason = beyond
        elif waiting + n > cfg.max_queue:
            is_busy = True
            reason = f"{waiting} of at most {cfg.max_queue} rows wait already; try again later"
        return Refused(request.id, reason, is_busy) if reason else None

    def _enqueue(self, request: Request) -> None:
        leader = None
        limit = len(request.prompt) + request.sampling.max_new_tokens
        for sample in range(request.n):
            order = request.arrival, next(self._count)
            row = Row(request, sample, order, limit, list(request.prompt), leader)
            leader = leader or row
            self.rows[row.id] = row
            insort(self._waiting, row, key=ORDER)
        self._samples[request.id] = set(range(request.n))

    def _append(self, row: Row, tokens: tuple[int, ...]) -> None:
        """Add what a step chose; to a preempted row too, which had its pages in that step."""
        assert row.pending, f"{row.id} emitted {tokens}, but no result of it is outstanding"
        most = row.pending.pop(0)
        assert 0 < len(tokens) <= most, f"{row.id} emitted {tokens}, not 1 to {most} tokens"
        row.tokens += tokens
        if row.slot is not None:
            row.computed = len(row.tokens) - 1
            self._publish(row)

    def _publish(self, row: Row) -> None:
        self.pages.publish(row.table, row.tokens, row.computed - self._unsettled)

    def _end(self, row: Row, reason: str) -> None:
        row.finish_reason = reason
        del self.rows[row.id]
        self._samples[row.request.id].remove(row.sample)
        if not self._samples[row.request.id]:
            del self._samples[row.request.id]
        if row.slot is None:
            _remove(self._waiting, row)
        else:
            self._leave(row)

    def _leave(self, row: Row) -> None:
        """Take away a row's slot and pages."""
        assert row.slot is not None, f"{row.id} does not run"
        _remove(self._running, row)
        heapq.heappush(self._slots, row.slot)
        row.slot, row.computed = None, 0
        self.pages.release(row.table)

    def _plan_rows(self, plan: Plan) -> None:
        """One pass of every row that decodes and whose length is not reached by what it awaits."""
        for row in list(self._running):  # those preempted on the way have no slot when it is theirs
            if (row.slot is None or row.is_prefilling or len(row.pending) == AHEAD
                    or len(row.tokens) + len(row.pending) >= row.limit):
                continue
            position = len(row.tokens) - 1 + sum(row.pending)
            if self._reserve(row, position + 1 + self.cfg.depth, plan):
                plan.rows.append(Decode(row.id, row.slot, position))
                row.pending.append(self.cfg.depth + 1)

    def _reserve(self, row: Row, positions: int, plan: Plan) -> bool:
        """Give a row pages for its first positions, those of later rows if need be; or preempt it.
        """
        lacking = self.pages.needed(positions) - len(row.table.pages)
        while lacking > self.pages.available:
            last = self._running[-1]
            plan.preempted.append(last.id)
            self._leave(last)
            insort(self._waiting, last, key=ORDER)
            if last is row:
                return False
        self._grow(row, lacking)
        return True

    def _grow(self, row: Row, pages: int) -> None:
        if pages > 0:
            more = self.pages.allocate(pages)
            assert more is not None, f"no {pages} pages for {row.id}"
            row.table.pages += more

    def _plan_chunks(self, plan: Plan) -> None:
        """Spend what rows leave of the budget on prompts; a chunk that does not fit ends it."""
        left = self.cfg.budget - len(plan.rows) * (self.cfg.depth + 1)
        planned = []
        for row in self._prefilling(plan):
            start = row.computed
            stop = min((start // self.cfg.chunk + 1) * self.cfg.chunk, row.target)
            if stop - start > left:
                break
            assert row.slot is not None, f"{row.id} does not run"
            plan.chunks.append(Chunk(row.id, row.slot, start, stop, stop == row.target))
            planned.append(row)
            left -= stop - start
            if not left:
                break
        for row, chunk in zip(planned, plan.chunks):  # from the next plan on, others may hit them
            row.computed = chunk.stop
            self._publish(row)

    def _prefilling(self, plan: Plan) -> Iterator[Row]:
        """Rows with a prompt to read: those that have a slot, then those that get one, one by one.

        Samples pass their turn while the first one computes their prompt. Nobody comes in where
        somebody had to leave.
        """
        yield from [row for row in self._running if row.is_prefilling]
        at = 0
        while not plan.preempted and self._slots and at < len(self._waiting):
            row = self._waiting[at]
            if row.leader is not None and row.leader.is_prefilling:
                at += 1
            elif self._admit(row, plan):
                if row.is_prefilling:
                    yield row
            else:
                break

    def _admit(self, row: Row, plan: Plan) -> bool:
        """Give a waiting row a slot and pages for its tokens, if all that run and are not at their
        last page can have one more.
        """
        pages = self.pages
        before, spare = pages.available, sum(map(self._grows, self._running))
        is_ended = len(row.tokens) >= row.limit  # its Finish is to come
        if is_ended or row.pending or before - spare < row.wanted:
            return False
        target = len(row.tokens) - 1
        copies: list[tuple[int, int]] = []
        if row.leader is not None and row.leader.slot is not None and target > self._tail:
            cached = target - self._tail
            forked = pages.fork(row.leader.table, cached)
            assert forked is not None, "at least one page is available"
            table, copies = forked
        else:
            table = pages.match(row.tokens, 1 + self._tail)
            cached = len(table.pages) * pages.size
        lacking = pages.needed(target) - len(table.pages)
        if lacking > pages.available - spare:
            row.wanted = before - pages.available + lacking
            pages.release(table)
            return False
        row.table, row.cached, row.computed, row.target = table, cached, cached, target
        row.leader, row.wanted = None, 1
        self._grow(row, lacking)
        row.slot = heapq.heappop(self._slots)
        _remove(self._waiting, row)
        insort(self._running, row, key=ORDER)
        plan.admitted.append(row.id)
        plan.copies += copies
        return True

    def _grows(self, row: Row) -> bool:
        """Return True for a row that may need another page than those it has."""
        most = pages_of(row.limit, self.cfg.page_size, self.cfg.depth)
        return len(row.table.pages) < most

    def check(self) -> None:
        """Assert what holds between any two calls."""
        self.pages.check([row.table for row in self._running])
        orders = [[row.order for row in rows] for rows in (self._running, self._waiting)]
        assert all(some == sorted(set(some)) for some in orders), "rows are not in order"
        rows = {row.id: row for row in self._running + self._waiting}
        assert rows == self.rows, "a row neither runs nor waits, or does although it ended"
        slots = [row.slot for row in self._running if row.slot is not None]
        assert sorted(slots + self._slots) == list(range(self.cfg.slots)), "a slot is lost or twice"
        for row in self._running:
            reach = max(row.target, row.computed, len(row.tokens) - 1 + sum(row.pending))
            assert len(row.table.pages) >= self.pages.needed(reach), f"{row.id} lacks pages"
            assert len(row.pending) <= AHEAD, f"{row.id} is too far ahead"
        for row in self._waiting:
            assert row.slot is None, f"{row.id} waits with a slot"
            assert not row.table.pages, f"{row.id} waits with pages"


def _remove(rows: list[Row], row: Row) -> None:
    """Take a row out of a list by order."""
    at = bisect_left(rows, row.order, key=ORDER)
    found = rows.pop(at)
    assert found is row, f"{row.id} is not where it should be"
