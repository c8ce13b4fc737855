"""The words a pipeline schedule is written in: operation, cell, table, and their spelling.

A schedule is data. `table[rank][slot]` holds cells; a cell is one operation, or a forward and a
full backward that run overlapped (DualPipe's F&B), or nothing. The tables of this package are
programs: the order in which each rank works, without idle cells. What idles, and how long,
follows from the dependencies: `simulate` derives it for any times, `build.lockstep` for equal
slots.

A family of schedules spells a rank's program as a list of words over its chunks, `f(0)`, `b(1)`,
`w`, `f(0) + bw(1)`, and `number` turns words into operations by counting: every chunk meets its
microbatches in order, and `w` takes the oldest input-gradient whose weight-gradient is still
owed. So the code that spells a schedule looks like the figure that explains it.

An activation lives from the start of its F to the end of its W or BW; the two halves of an
overlapped cell are alive together. By this convention the memory column of the report (V3 Table
2) comes out: PP for 1F1B and ZB1P, PP + 1 for DualPipe. The unit is one stage of one microbatch.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """Kind of an operation; BW is B and W at once."""

    FORWARD = "F"
    INPUT = "B"
    WEIGHT = "W"
    BACKWARD = "BW"

    __hash__ = str.__hash__  # Enum's own is a Python function; tables of 10^5 operations feel it


@dataclass(frozen=True, slots=True)
class Op:
    """`kind` of `stage` for `microbatch`, on the rank's `chunk`, traveling in `direction`.

    Stages count along the microbatch's own direction: stage 0 embeds, the last has the loss.
    """

    kind: Kind
    stage: int
    microbatch: int
    chunk: int = 0
    direction: int = 0

    def __str__(self) -> str:
        return f"{self.kind} of stage {self.stage}, microbatch {self.microbatch}"


Cell = tuple[Op, ...]
Row = tuple[Cell, ...]
Table = tuple[Row, ...]
Result = tuple[Kind, int, int]
"""F or B, stage, microbatch: what one operation leaves for others."""


@dataclass(frozen=True)
class Schedule:
    """A named table with what is needed to check and run it.

    `home[direction][stage]` is the rank that computes a stage; a second direction holds a second
    copy of every stage. `steps[rank]` counts the eight steps of DualPipe, empty for the others.
    """

    name: str
    ranks: int
    stages: int
    microbatches: int
    home: tuple[tuple[int, ...], ...]
    table: Table
    steps: tuple[tuple[int, ...], ...] = ()

    @property
    def copies(self) -> int:
        """Ranks that hold each stage: 2 where the batch enters from both ends."""
        return len(self.home)

    @property
    def chunks(self) -> int:
        """Stages that a rank holds: the report's parameter column, in units of model / stages."""
        return self.copies * self.stages // self.ranks

    def direction(self, microbatch: int) -> int:
        """Direction that a microbatch travels: equal, contiguous shares enter at each end."""
        return microbatch * len(self.home) // self.microbatches

    def rank_of(self, stage: int, microbatch: int) -> int:
        """Rank on which a microbatch meets a stage."""
        return self.home[self.direction(microbatch)][stage]

    def needs(self, op: Op) -> tuple[Result, ...]:
        """Return the results that an operation waits for.

        F waits for F of the stage before; B and BW for the F here and B of the stage after; W for
        the B here.
        """
        stage, microbatch = op.stage, op.microbatch
        if op.kind is Kind.FORWARD:
            return ((Kind.FORWARD, stage - 1, microbatch),) if stage else ()
        if op.kind is Kind.WEIGHT:
            return ((Kind.INPUT, stage, microbatch),)
        here = (Kind.FORWARD, stage, microbatch)
        if stage + 1 == self.stages:
            return (here,)
        return (here, (Kind.INPUT, stage + 1, microbatch))


def makes(op: Op) -> Result:
    """Return the result of an operation that others wait for; of a BW, the input-gradient."""
    kind = Kind.INPUT if op.kind is Kind.BACKWARD else op.kind
    return (kind, op.stage, op.microbatch)


Word = tuple[tuple[Kind, int], ...]


def f(chunk: int) -> Word:
    """Spell a forward."""
    return ((Kind.FORWARD, chunk),)


def b(chunk: int) -> Word:
    """Spell an input-gradient, whose weight-gradient comes later."""
    return ((Kind.INPUT, chunk),)


def bw(chunk: int) -> Word:
    """Spell a full backward; `f(i) + bw(j)` is the overlapped pair."""
    return ((Kind.BACKWARD, chunk),)


w: Word = ((Kind.WEIGHT, -1),)
"""The oldest pending weight-gradient, of whichever chunk."""


@dataclass(frozen=True)
class Chunk:
    """A stage held by a rank, the direction it serves, and the first microbatch that it meets."""

    index: int
    stage: int
    direction: int = 0
    first: int = 0


def number(words: Iterable[Word], chunks: Sequence[Chunk]) -> Row:
    """Turn a rank's words into cells: a counter a chunk for F and one for B, a queue for W."""
    forwards = [chunk.first for chunk in chunks]
    backwards = [chunk.first for chunk in chunks]
    pending: deque[tuple[int, int]] = deque()

    def operation(kind: Kind, spelled: int) -> Op:
        if kind is Kind.WEIGHT:
            spelled, microbatch = pending.popleft()
        else:
            met = forwards if kind is Kind.FORWARD else backwards
            microbatch = met[spelled]
            met[spelled] += 1
            if kind is Kind.INPUT:
                pending.append((spelled, microbatch))
        chunk = chunks[spelled]
        return Op(kind, chunk.stage, microbatch, chunk.index, chunk.direction)

    return tuple(tuple(operation(*letter) for letter in word) for word in words)


@dataclass(frozen=True)
class Work:
    """Cells of each kind that a rank runs; the F and BW of `paired` cells are not counted again."""

    forward: int
    input: int
    weight: int
    backward: int
    paired: int
    idle: int


def count_work(table: Table) -> tuple[Work, ...]:
    """Count each rank's work by kind, in a program or in a lockstep table."""
    return tuple(map(_count_row, table))


def _count_row(row: Row) -> Work:
    tally = dict.fromkeys(Kind, 0)
    paired = 0
    for cell in row:
        kinds = [op.kind for op in cell]
        if Kind.FORWARD in kinds and Kind.BACKWARD in kinds:
            paired += 1
            kinds = []
        for kind in kinds:
            tally[kind] += 1
    return Work(
        forward=tally[Kind.FORWARD],
        input=tally[Kind.INPUT],
        weight=tally[Kind.WEIGHT],
        backward=tally[Kind.BACKWARD],
        paired=paired,
        idle=sum(not cell for cell in row),
    )
