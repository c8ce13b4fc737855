"""A proof that a schedule is right: each operation once, dependencies met, peak of activations.

The certificate is an assignment of slots: `build.lockstep` finds one, and this file checks it
edge by edge without using how it was found. A schedule without such an assignment deadlocks; one
with it runs for any durations, because waiting only delays.
"""

from collections import Counter
from dataclasses import dataclass

from dsjax.pipeline.schedules.build import Lockstep, lockstep
from dsjax.pipeline.schedules.table import Kind, Op, Row, Schedule, Table, makes


@dataclass(frozen=True)
class Proof:
    """Counts of what was checked: operations, dependencies, those across ranks; peak by rank."""

    certificate: Lockstep
    operations: int
    dependencies: int
    transfers: int
    peak_activations: tuple[int, ...]


def validate(schedule: Schedule) -> Proof:
    """Prove a schedule; raises `ValueError` that names the first operation at fault."""
    _check_once(schedule, schedule.table)
    steps = lockstep(schedule)
    for rank, (row, slots) in enumerate(zip(schedule.table, steps.table)):
        assert row == tuple(filter(None, slots)), f"lockstep changed the order of rank {rank}"
    return validate_lockstep(steps)


def validate_lockstep(steps: Lockstep) -> Proof:
    """Prove a lockstep table: what an operation needs was made at least one slot before."""
    schedule, table = steps.schedule, steps.table
    _check_once(schedule, table)
    slot_of = {makes(op): slot for row in table for slot, cell in enumerate(row) for op in cell}
    operations = dependencies = transfers = 0
    for rank, row in enumerate(table):
        for slot, op in ((slot, op) for slot, cell in enumerate(row) for op in cell):
            operations += 1
            for kind, stage, microbatch in schedule.needs(op):
                made = slot_of[kind, stage, microbatch]
                if made >= slot:
                    raise ValueError(
                        f"{schedule.name} runs {op} in slot {slot} of rank {rank}, but what it "
                        f"needs, {Op(kind, stage, microbatch)}, runs in slot {made}; move it to "
                        f"slot {made + 1} or later"
                    )
                dependencies += 1
                transfers += schedule.rank_of(stage, microbatch) != rank
    return Proof(steps, operations, dependencies, transfers, peak_activations(table))


def peak_activations(table: Table) -> tuple[int, ...]:
    """Most activations alive on each rank, in units of one stage of one microbatch.

    An activation lives from the start of its F to the end of its W or BW, so within a cell the
    forward takes its place before the backward gives one back.
    """
    return tuple(map(_peak, table))


def _peak(row: Row) -> int:
    alive = most = 0
    for cell in row:
        alive += sum(op.kind is Kind.FORWARD for op in cell)
        most = max(most, alive)
        alive -= sum(op.kind in (Kind.WEIGHT, Kind.BACKWARD) for op in cell)
    return most


def _check_once(schedule: Schedule, table: Table) -> None:
    """Every stage and microbatch has F, B and W once (BW is both), on the rank of the stage."""
    met: Counter[tuple[str, int, int]] = Counter()
    for rank, row in enumerate(table):
        for op in (op for cell in row for op in cell):
            if not (0 <= op.stage < schedule.stages and 0 <= op.microbatch < schedule.microbatches):
                raise ValueError(
                    f"{schedule.name} has {op} on rank {rank}, but only stages below "
                    f"{schedule.stages} and microbatches below {schedule.microbatches}; remove it"
                )
            home, direction = schedule.rank_of(op.stage, op.microbatch), op.direction
            if home != rank or direction != schedule.direction(op.microbatch):
                raise ValueError(
                    f"{schedule.name} has {op}, direction {direction}, on rank {rank}, but it "
                    f"belongs to rank {home}, direction {schedule.direction(op.microbatch)}; "
                    "move it there"
                )
            met.update([(letter, op.stage, op.microbatch) for letter in op.kind])
    for stage in range(schedule.stages):
        for microbatch in range(schedule.microbatches):
            for letter in "FBW":
                if met[letter, stage, microbatch] != 1:
                    raise ValueError(
                        f"{schedule.name} runs {letter} of stage {stage}, microbatch {microbatch} "
                        f"{met[letter, stage, microbatch]} times (a BW is one B and one W); "
                        "run it exactly once"
                    )
