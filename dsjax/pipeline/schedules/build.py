"""Pipeline schedules by name, and their lockstep form.

`build("dualpipe", ranks=8, microbatches=20)` is a table of operations (schedules/table.py has the
words, and says how long an activation lives). `lockstep` turns any table into equal slots for an
executor that runs one slot on all ranks, exchanges, and goes on: there every value that crosses
ranks is made at least one slot before it is used.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product

from dsjax.config.fields import did_you_mean
from dsjax.errors import UserError
from dsjax.pipeline.schedules.dualpipe import dualpipe, dualpipe_v
from dsjax.pipeline.schedules.flush import gpipe, interleaved, one_f_one_b
from dsjax.pipeline.schedules.table import (
    Cell,
    Kind,
    Op,
    Result,
    Schedule,
    Table,
    Work,
    count_work,
    makes,
)
from dsjax.pipeline.schedules.zero_bubble import zb_h1, zb_v

BUILDERS: dict[str, Callable[..., Schedule]] = {
    "gpipe": gpipe,
    "1f1b": one_f_one_b,
    "interleaved": interleaved,
    "zb-h1": zb_h1,
    "zb-v": zb_v,
    "dualpipe": dualpipe,
    "dualpipe-v": dualpipe_v,
}
NAMES = tuple(BUILDERS)


def build(name: str, ranks: int, microbatches: int, *, chunks: int | None = None) -> Schedule:
    """Build a schedule by name; `chunks` (stages a rank, 2 unless said) is interleaved's alone.

    Raises `UserError`, with the values that would do, for arguments that the schedule cannot serve.
    """
    if name not in BUILDERS:
        mean = did_you_mean(name, NAMES)
        raise UserError(f"schedule {name!r} is unknown{mean}; choose one of {', '.join(NAMES)}")
    given = {
        "ranks": ranks,
        "microbatches": microbatches,
        "chunks": 1 if chunks is None else chunks,
    }
    for what, value in given.items():
        if value < 1:
            raise UserError(f"{what}={value} is less than 1; choose {what} >= 1")
    if chunks is None:
        return BUILDERS[name](ranks, microbatches)
    if name != "interleaved":
        raise UserError(
            f"chunks={chunks} was given, but {name} fixes the stages a rank; "
            "leave --chunks out or choose the schedule interleaved"
        )
    return interleaved(ranks, microbatches, chunks)


def split_backward(schedule: Schedule) -> Schedule:
    """Replace every unpaired BW by its B and, next, its W; the earlier stage then waits less.

    In lockstep this gives 1F1B and its kin slots of about equal length, where a slot with an F on
    one rank and a BW on another lasts as long as the BW. Overlapped pairs stay whole.
    """

    def halves(cell: Cell) -> tuple[Cell, ...]:
        if len(cell) != 1 or cell[0].kind is not Kind.BACKWARD:
            return (cell,)
        return tuple((replace(cell[0], kind=kind),) for kind in (Kind.INPUT, Kind.WEIGHT))

    table = tuple(tuple(half for cell in row for half in halves(cell)) for row in schedule.table)
    return replace(schedule, table=table)


@dataclass(frozen=True)
class Lockstep:
    """A schedule in equal slots: `table[rank][slot]`, with empty cells where a rank idles."""

    schedule: Schedule
    table: Table
    work: tuple[Work, ...]  # of each rank

    @property
    def slots(self) -> int:
        """Length of the step in slots."""
        return len(self.table[0])


def lockstep(schedule: Schedule) -> Lockstep:
    """Give every cell its earliest slot, keeping each rank's order.

    Raises `ValueError`, naming who waits for what, if the ranks wait for each other.
    """
    done: set[Result] = set()
    waiting = [deque(row) for row in schedule.table]
    rows: list[list[Cell]] = [[] for _ in schedule.table]
    while any(waiting):
        placed = [_take(schedule, queue, done) for queue in waiting]
        if not any(placed):
            raise ValueError(_deadlock(schedule, waiting, done))
        for row, cell in zip(rows, placed):
            row.append(cell)
            done.update(map(makes, cell))
    table = tuple(map(tuple, rows))
    return Lockstep(schedule, table, count_work(table))


def latest(steps: Lockstep) -> Lockstep:
    """The same slots of one cell each, every cell in its latest, keeping each rank's order.

    Long cells then meet: with earliest slots DualPipe's first pairs on the middle ranks stand
    beside single operations of the outer ones, which wait for them. Memory but for the inbox
    depends on the order alone and stays.
    """
    schedule = steps.schedule
    made_in: dict[Result, tuple[int, int]] = {}
    for rank, row in enumerate(steps.table):
        made_in |= {makes(op): (rank, at) for at, cell in enumerate(row) for op in cell}
    before: dict[Result, int] = {}  # the first slot that reads a result
    follows = [steps.slots] * len(steps.table)  # the slot of each rank's next cell
    rows: list[list[Cell]] = [[()] * steps.slots for _ in steps.table]
    for slot, rank in product(reversed(range(steps.slots)), range(len(rows))):
        cell = steps.table[rank][slot]
        if not cell:
            continue
        at = min([follows[rank], *(before.get(makes(op), steps.slots) for op in cell)]) - 1
        rows[rank][at], follows[rank] = cell, at
        for need in (need for op in cell for need in schedule.needs(op)):
            if made_in[need] != (rank, slot):
                before[need] = min(at, before.get(need, at))
    return replace(steps, table=tuple(map(tuple, rows)))


def _take(schedule: Schedule, queue: deque[Cell], done: set[Result]) -> Cell:
    """Take the next cell from a rank's queue; nothing if it must wait."""
    if not queue or any(need not in done for op in queue[0] for need in schedule.needs(op)):
        return ()
    return queue.popleft()


def _deadlock(schedule: Schedule, waiting: list[deque[Cell]], done: set[Result]) -> str:
    """Say what the first waiting rank waits for."""
    rank, queue = next((rank, queue) for rank, queue in enumerate(waiting) if queue)
    op, missing = next(
        (op, result) for op in queue[0] for result in schedule.needs(op) if result not in done
    )
    return (
        f"{schedule.name} never ends: rank {rank} comes to {op}, which waits for "
        f"{Op(*missing)}, and no rank can go on; reorder that rank's row"
    )
