"""A lockstep table as numbers that a scan over slots can follow: who, what, from where, to where.

Every rank runs the same program, so each instruction is an integer array [rank, slot]. -1 says that
nothing is done. Places in memory are given out here, once: an activation gets a place when its F
runs and gives it back after its W or BW, a value from another rank waits in an inbox from the slot
after it was made to the slot that uses it. So memory is fixed before anything runs, and no larger
than the most that is alive on any rank.

The output of the last stage waits for its own backward in the inbox of gradients: head and losses
run there, forward and backward together, so that no logits outlive a slot.

A `place` holds one stage's activations of one microbatch, the unit of `validate.Proof`.
"""

from __future__ import annotations

import dataclasses
import heapq
from typing import Any, NamedTuple

import numpy as np

from dsjax.pipeline.schedules.build import Lockstep, latest, lockstep, split_backward
from dsjax.pipeline.schedules.simulate import Times, lockstep_time
from dsjax.pipeline.schedules.table import Cell, Kind, Op, Schedule

Column = Any  # [P, slots] int32 in NumPy; [] on a rank in its slot


class Instructions(NamedTuple):
    """What a rank does in a slot; arrays [P, slots] int32, or one of their columns in a slot."""

    branch: Column  # which of `Program.branches`
    f_chunk: Column
    f_microbatch: Column
    f_place: Column  # where its activations go; -1: no F
    f_from: Column  # place in the inbox of activations; -1: the embedding
    b_chunk: Column
    b_microbatch: Column
    b_place: Column  # -1: no B
    b_from: Column  # place in the inbox of gradients; of the output, on the last stage
    b_is_last: Column  # 1 where the loss is
    b_is_first: Column  # 1 where the embedding is
    b_owed: Column  # where what W needs goes; -1: W runs at once
    w_chunk: Column
    w_microbatch: Column
    w_place: Column  # -1: no W
    w_owed: Column
    y_here: Column  # place in the own inbox of activations that this slot's output goes to
    y_last: Column  # place in the own inbox of gradients, for the last stage's output
    y_up: Column  # place for the output that the rank before sends in this slot
    y_down: Column  # place for the output that the rank after sends
    dx_here: Column
    dx_up: Column
    dx_down: Column


@dataclasses.dataclass(frozen=True)
class Program:
    """Instructions, and the memory they need."""

    steps: Lockstep
    instructions: Instructions
    branches: tuple[tuple[Kind, ...], ...]
    """Kinds of operation that a slot can hold; only one entry where every slot runs all lanes."""
    stage_of: tuple[tuple[int, ...], ...]
    """Stage of each rank and chunk."""
    activations: int
    """Places for activations: the table's peak."""
    owed: int
    """Places for what W still needs."""
    inbox: tuple[int, int]
    """Places for values waiting: activations, gradients."""

    @property
    def schedule(self) -> Schedule:
        """The schedule this runs."""
        return self.steps.schedule

    @property
    def pair(self) -> int:
        """The branch of an overlapped F&BW; -1 if the table has none."""
        kinds = (Kind.FORWARD, Kind.BACKWARD)
        return self.branches.index(kinds) if kinds in self.branches else -1

    @property
    def steady(self) -> np.ndarray:
        """Slots in which every rank has such a pair, [slots] bool."""
        return (self.instructions.branch == self.pair).all(axis=0)


def forms(schedule: Schedule) -> dict[str, Lockstep]:
    """What can be executed of a schedule: slots that branch, backwards whole or cut; or masked.

    A branched slot lasts as long as its longest cell: an F beside a BW waits for it, so 1F1B and
    its kin gain by the cut, and DualPipe, whose pairs are whole slots, loses.
    """
    return {
        "branched": latest(lockstep(schedule)),
        "branched, backwards cut": latest(lockstep(split_backward(schedule))),
        "masked": lockstep(schedule, lanes=True),
    }


def length(steps: Lockstep, times: Times | None = None) -> float:
    """How long the slots of a form take; all times 1 by default."""
    counted = lockstep_time(steps, times or Times())
    return counted.masked if steps.lanes else counted.branched


def shortest(schedule: Schedule, times: Times | None = None) -> Lockstep:
    """The form that takes least time by count, all times 1 by default.

    A masked slot is as long as F&B on every rank. Where overlap saves nothing that is longer for
    every schedule; it is shorter where F&B takes little of F + B + W, for ZB-V on 4 ranks below
    a half with 8 microbatches and more with more (experiments/pipelines has measured times).
    """
    return min(forms(schedule).values(), key=lambda steps: length(steps, times))


class _Places:
    """Numbers given out and taken back, the lowest first."""

    def __init__(self) -> None:
        self.free: list[int] = []
        self.count = 0

    def take(self) -> int:
        if self.free:
            return heapq.heappop(self.free)
        self.count += 1
        return self.count - 1

    def give(self, place: int) -> None:
        heapq.heappush(self.free, place)


class _Rank:
    """The memory of one rank while its row is read."""

    def __init__(self) -> None:
        self.activations, self.owed = _Places(), _Places()
        self.x, self.gradient = _Places(), _Places()
        self.at: dict[tuple[str, int, int], tuple[_Places, int]] = {}

    def put(self, what: str, op: Op, places: _Places) -> int:
        place = places.take()
        self.at[what, op.stage, op.microbatch] = (places, place)
        return place

    def look(self, what: str, op: Op) -> int:
        return self.at[what, op.stage, op.microbatch][1]

    def drop(self, what: str, op: Op) -> int:
        places, place = self.at.pop((what, op.stage, op.microbatch))
        places.give(place)
        return place


def compile_table(steps: Lockstep) -> Program:
    """Give every value of a lockstep table its place."""
    schedule, table = steps.schedule, steps.table
    fields = {name: np.full((len(table), steps.slots), -1, np.int32)
              for name in Instructions._fields}
    ranks = [_Rank() for _ in table]
    branches = _branches(steps)
    for slot in range(steps.slots):
        column = {name: values[:, slot] for name, values in fields.items()}
        for rank, row in enumerate(table):
            column["branch"][rank] = 0 if steps.lanes else branches.index(_kinds(row[slot]))
            _work(row[slot], schedule, ranks[rank], {n: v[rank : rank + 1]
                                                     for n, v in column.items()}, steps.lanes)
        for rank, row in enumerate(table):
            for op in row[slot]:
                _send(op, rank, schedule, ranks, column)
    return Program(
        steps=steps,
        instructions=Instructions(**fields),
        branches=branches,
        stage_of=_stage_of(steps),
        activations=max(r.activations.count for r in ranks),
        owed=max(r.owed.count for r in ranks),
        inbox=(max(r.x.count for r in ranks), max(r.gradient.count for r in ranks)),
    )


def _kinds(cell: Cell) -> tuple[Kind, ...]:
    return tuple(kind for kind in Kind if any(op.kind is kind for op in cell))


def _branches(steps: Lockstep) -> tuple[tuple[Kind, ...], ...]:
    if steps.lanes:
        return ((Kind.FORWARD, Kind.INPUT, Kind.WEIGHT),)
    return tuple(sorted({_kinds(cell) for row in steps.table for cell in row}))


def _stage_of(steps: Lockstep) -> tuple[tuple[int, ...], ...]:
    """Read from the table which stage each chunk of a rank is."""
    found = []
    for row in steps.table:
        stages = {op.chunk: op.stage for cell in row for op in cell}
        found.append(tuple(stages[chunk] for chunk in range(steps.schedule.chunks)))
    return tuple(found)


def _work(cell: Cell, schedule: Schedule, rank: _Rank, out: dict[str, np.ndarray],
          is_lanes: bool) -> None:
    """Places that a cell reads and writes; F takes before the backward gives back."""
    last = schedule.stages - 1
    for op in sorted(cell, key=lambda op: "FB".find(op.kind[0]) % 3):  # F, then B, then W
        if op.kind is Kind.FORWARD:
            out["f_chunk"][:], out["f_microbatch"][:] = op.chunk, op.microbatch
            out["f_place"][:] = rank.put("activation", op, rank.activations)
            if op.stage:
                out["f_from"][:] = rank.drop("x", op)
        if "B" in op.kind:
            out["b_chunk"][:], out["b_microbatch"][:] = op.chunk, op.microbatch
            out["b_place"][:] = rank.look("activation", op)
            out["b_from"][:] = rank.drop("gradient", op)
            out["b_is_last"][:], out["b_is_first"][:] = op.stage == last, op.stage == 0
            if op.kind is Kind.INPUT or is_lanes:
                out["b_owed"][:] = rank.put("owed", op, rank.owed)
        if "W" in op.kind:
            out["w_chunk"][:], out["w_microbatch"][:] = op.chunk, op.microbatch
            out["w_place"][:] = rank.look("activation", op)
            if op.kind is Kind.WEIGHT or is_lanes:
                out["w_owed"][:] = rank.look("owed", op)
    for op in cell:
        if "W" in op.kind:
            rank.drop("activation", op)
            if op.kind is Kind.WEIGHT or is_lanes:
                rank.drop("owed", op)


def _send(op: Op, rank: int, schedule: Schedule, ranks: list[_Rank],
          column: dict[str, np.ndarray]) -> None:
    """A place at the receiver for what an operation made."""
    if op.kind is Kind.WEIGHT:
        return
    is_forward = op.kind is Kind.FORWARD
    if is_forward and op.stage + 1 == schedule.stages:
        column["y_last"][rank] = ranks[rank].put("gradient", op, ranks[rank].gradient)
        return
    if not is_forward and op.stage == 0:
        return
    there = dataclasses.replace(op, stage=op.stage + (1 if is_forward else -1))
    to = schedule.rank_of(there.stage, op.microbatch)
    where = ranks[to]
    name, what = ("y", "x") if is_forward else ("dx", "gradient")
    place = where.put(what, there, where.x if is_forward else where.gradient)
    if to == rank:
        way = "here"
    elif (rank + 1) % len(ranks) == to:
        way = "up"
    else:
        assert (to + 1) % len(ranks) == rank, f"rank {rank} sends to {to}, which is no neighbor"
        way = "down"
    assert column[f"{name}_{way}"][to] == -1, f"rank {to} receives two values in one slot"
    column[f"{name}_{way}"][to] = place
