"""Simulation of a schedule, for given times of operations: makespan, bubble, memory.

Each rank works through its program and starts a cell when it is free and what the cell needs has
arrived. A value takes `transfer` between two ranks and nothing within one; links never queue, and
an overlapped pair delivers both of its results at its end. Times may be ints or fractions, and
then the results are exact.

The bubble of a rank is the makespan less its work; the bubble of a schedule is that of the rank
that idles most. It equals the report's formula (V3 Table 2, `formula_bubble`), in our letters

    gpipe, 1f1b, interleaved   (P-1)(F + B + W)               for any times
    zb-h1                      (P-1)(F + B - W)               for W <= F and W <= B and
                                                              microbatches >= P
    zb-v                       (ranks-1) F                    for B = F and F/2 <= W <= F
    dualpipe, dualpipe-v       (P/2-1)(F&B + (B+W) - 3W)      for B = F, W <= F and
                                                              B + W <= F&B <= F + B + W

with transfer 0. Outside these regimes the simulated number is the true one; the formulas leave
out the waiting that they assume away. The report writes B for our B + W. Interleaved's and the
V's times are those of their thinner stages; for the V's P is the number of stages.
"""

from collections import deque
from dataclasses import dataclass, fields

from dsjax.pipeline.schedules.build import Lockstep
from dsjax.pipeline.schedules.dualpipe import dualpipe
from dsjax.pipeline.schedules.table import Cell, Kind, Op, Result, Schedule, count_work, makes
from dsjax.pipeline.schedules.validate import peak_activations

SHORTEST, LONGEST = 1e-9, 1e9
"""Of durations but 0: beside longer ones shorter ones vanish from sums, and no sum overflows."""


@dataclass(frozen=True)
class Times:
    """Duration of each kind on one stage, in any unit; a full backward is input + weight."""

    forward: float = 1
    """F of one microbatch."""
    input: float = 1
    """B, the input-gradient."""
    weight: float = 1
    """W, the weight-gradient."""
    overlapped: float | None = None
    """F&B, a forward overlapped with a full backward; None means that nothing is saved."""
    transfer: float = 0
    """One hop of an activation or a gradient between two ranks."""

    def __post_init__(self) -> None:
        for name, value in ((field.name, getattr(self, field.name)) for field in fields(self)):
            if value is not None and not (value == 0 or SHORTEST <= value <= LONGEST):
                raise ValueError(f"Times.{name}={value} is not a duration; use 0 or a number "
                                 f"between {SHORTEST:g} and {LONGEST:g}, in any unit")

    @property
    def backward(self) -> float:
        """BW, the full backward."""
        return self.input + self.weight

    @property
    def pair(self) -> float:
        """F&B, or F + BW where no overlapped time is given."""
        return self.forward + self.backward if self.overlapped is None else self.overlapped

    def of(self, cell: Cell) -> float:
        """Duration of a cell: of all its operations in turn, unless F, B and W make it a pair."""
        if len(cell) == 1:
            return getattr(self, DURATION[cell[0].kind])
        if set("".join(op.kind for op in cell)) == {"F", "B", "W"}:
            return self.pair
        return sum(getattr(self, DURATION[op.kind]) for op in cell)


DURATION = {
    Kind.FORWARD: "forward",
    Kind.INPUT: "input",
    Kind.WEIGHT: "weight",
    Kind.BACKWARD: "backward",
}


@dataclass(frozen=True)
class Timeline:
    """`spans[rank][i]` is (start, end) of `schedule.table[rank][i]`; other tuples are by rank."""

    schedule: Schedule
    times: Times
    spans: tuple[tuple[tuple[float, float], ...], ...]
    makespan: float
    busy: tuple[float, ...]
    peak_activations: tuple[int, ...]

    @property
    def bubbles(self) -> tuple[float, ...]:
        """Idle time of each rank within the makespan."""
        return tuple(self.makespan - busy for busy in self.busy)

    @property
    def bubble(self) -> float:
        """Idle time of the rank that idles most: of all, unless pairs save time."""
        return max(self.bubbles)


def simulate(schedule: Schedule, times: Times | None = None) -> Timeline:
    """Run the programs of all ranks with `times` (all 1 by default); linear in the operations.

    Raises `ValueError` if the ranks wait for each other.
    """
    times = times or Times()
    table = schedule.table
    waiting = [deque(row) for row in table]
    spans: list[list[tuple[float, float]]] = [[] for _ in table]
    ended: dict[Result, float] = {}
    asleep: dict[Result, int] = {}
    awake = deque(range(len(table)))
    while awake:
        rank = awake.popleft()
        while waiting[rank]:
            cell = waiting[rank][0]
            ready = _ready(schedule, rank, cell, ended, times.transfer)
            if isinstance(ready, tuple):
                asleep[ready] = rank
                break
            waiting[rank].popleft()
            start = max(ready, spans[rank][-1][1]) if spans[rank] else ready
            end = start + times.of(cell)
            spans[rank].append((start, end))
            for result in map(makes, cell):
                ended[result] = end
                if result in asleep:
                    awake.append(asleep.pop(result))
    if asleep:
        missing, rank = next(iter(asleep.items()))
        raise ValueError(
            f"{schedule.name} never ends: rank {rank} waits for {Op(*missing)}; "
            "reorder the table (validate says more)"
        )
    busy = tuple(sum(map(times.of, row)) for row in table)
    makespan = max(row[-1][1] for row in spans)
    peaks = peak_activations(table)
    return Timeline(schedule, times, tuple(map(tuple, spans)), makespan, busy, peaks)


def _ready(
    schedule: Schedule, rank: int, cell: Cell, ended: dict[Result, float], transfer: float
) -> float | Result:
    """Return the time when a cell's needs have arrived, or the first that does not exist yet."""
    ready: float = 0
    for op in cell:
        for result in schedule.needs(op):
            if result not in ended:
                return result
            here = schedule.rank_of(*result[1:]) == rank
            ready = max(ready, ended[result] + (0 if here else transfer))
    return ready


def formula_bubble(schedule: Schedule, times: Times) -> float:
    """The closed form of a schedule's bubble (module docstring has the regimes)."""
    F, B, W, BW = times.forward, times.input, times.weight, times.backward
    if schedule.name in ("dualpipe", "dualpipe-v"):
        return (schedule.stages // 2 - 1) * (times.pair + BW - 3 * W)
    wait = {"zb-h1": F + B - W, "zb-v": F}.get(schedule.name, F + BW)
    return (schedule.ranks - 1) * wait


def is_in_regime(schedule: Schedule, times: Times) -> bool:
    """Return True if the closed form of the bubble holds for these times (module docstring)."""
    F, B, W, BW = times.forward, times.input, times.weight, times.backward
    if times.transfer:
        return False
    return {
        "zb-h1": max(W - F, W - B) <= 0 and schedule.microbatches >= schedule.ranks,
        "zb-v": B == F and F / 2 <= W <= F,
        "dualpipe": B == F and W <= F and BW <= times.pair <= F + BW,
        "dualpipe-v": B == F and W <= F and BW <= times.pair <= F + BW,
    }.get(schedule.name, True)


def formula_activations(schedule: Schedule) -> int:
    """The closed form of the peak of live activations, once the batch fills the pipeline."""
    P, ranks, M = schedule.stages, schedule.ranks, schedule.microbatches
    if schedule.name == "interleaved":
        return min(P + ranks - 1, M * schedule.chunks)
    if schedule.name in ("dualpipe", "dualpipe-v"):
        return P + 1
    return M if schedule.name == "gpipe" else min(P, M * schedule.chunks)


def lockstep_time(steps: Lockstep, times: Times) -> float:
    """Predict how long equal slots take, ranks meeting after each: that of its longest cell."""
    slots = zip(*steps.table)
    return sum(max(times.of(cell) for cell in slot if cell) for slot in slots)


@dataclass(frozen=True)
class StepParts:
    """A rank's step by what it is doing: 1F, 1B (full or input-gradient), 1W, 1F1B, and nothing."""

    forward: float
    backward: float
    weight: float
    overlapped: float
    bubble: float


def step_parts(timeline: Timeline, rank: int) -> StepParts:
    """Divide the makespan of one rank among the kinds of its cells."""
    work, times = count_work(timeline.schedule.table)[rank], timeline.times
    return StepParts(
        work.forward * times.forward,
        work.input * times.input + work.backward * times.backward,
        work.weight * times.weight,
        work.paired * times.pair,
        timeline.bubbles[rank],
    )


def times_of_parts(schedule: Schedule, rank: int, parts: StepParts) -> Times:
    """Times with which a rank's step has the given parts; the inverse of `step_parts`."""
    work = count_work(schedule.table)[rank]
    weight = parts.weight / work.weight
    whole = work.backward * weight
    return Times(
        forward=parts.forward / work.forward,
        input=(parts.backward - whole) / (work.input + work.backward),
        weight=weight,
        overlapped=parts.overlapped / work.paired,
    )


V3_STEP = StepParts(forward=1.13, backward=1.99, weight=0.48, overlapped=13.95, bubble=2.06)
"""Seconds of one training step of V3, MPFT network ("Insights into DeepSeek-V3", Table 4)."""
V3_OPTIMIZER, V3_TOTAL = 0.29, 19.926


def v3_step(rank: int = 0) -> Timeline:
    """Simulate the published V3 step from its own 1F, 1B, 1W and 1F1B, read as totals of one rank.

    The published parts sum to 19.90 s of 19.926 s, the difference within rounding, so they are a
    step's totals and not chunk times. 15,360 sequences over 128 pipelines of 16 ranks are 120
    each. Only microbatches of one sequence fit: F&B is then 0.64 (middle ranks) to 0.92 (rank 0)
    of F + B + W; with two sequences it would be 1.5 to 2.4 times, with half a one less than B + W.
    The measured rank is not named, so `rank` is the reader's choice.

    What comes out is shorter than published: of the 2.06 s of bubble the schedule accounts for
    0.8 to 1.0 s. The rest is not in a model of equal stages and free links (61 layers, embedding,
    head and MTP do not divide by 16).
    """
    schedule = dualpipe(16, 120)
    return simulate(schedule, times_of_parts(schedule, rank, V3_STEP))
