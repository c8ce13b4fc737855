"""A lockstep table as numbers that a scan over ticks can follow: who, what, from where, to where.

Every rank runs the same program, so each instruction is an integer array [rank, tick]; -1 says that
nothing is done. Buffers are given out here, once: what F leaves gets a buffer when F runs and gives
it back after its W or BW; a value from another rank waits in an inbox from the tick after it was
made to the tick that uses it. So memory is fixed before anything runs, and no larger than the most
that is alive on any rank.

The output of the last stage waits for its own backward in the inbox of gradients: head and losses
run there, forward and backward together, so that no logits outlive a tick.

A buffer of residuals holds one stage's of one microbatch, the unit of `validate.Proof`.
"""

from __future__ import annotations

import dataclasses
import heapq
from typing import Any, NamedTuple

import numpy as np

from dsjax.pipeline.schedules.build import Lockstep, latest, lockstep, split_backward
from dsjax.pipeline.schedules.simulate import Times, lockstep_time
from dsjax.pipeline.schedules.table import Cell, Kind, Op, Schedule

Column = Any  # [P, ticks] int32 in NumPy; [] on a rank in its tick


class Instructions(NamedTuple):
    """Work of a rank in a tick; arrays [P, ticks] int32, or one of their columns in a tick."""

    branch: Column  # which of `Program.branches`
    f_chunk: Column
    f_microbatch: Column
    f_buffer: Column  # for its residuals; -1: no F
    f_from: Column  # in the inbox of activations; -1: the embedding
    b_chunk: Column
    b_microbatch: Column
    b_buffer: Column  # of what its F left; -1: no B
    b_from: Column  # in the inbox of gradients; of the output, on the last stage
    b_is_last: Column  # 1 where the loss is
    b_is_first: Column  # 1 where the embedding is
    b_for_w: Column  # buffer for what W needs of B; -1: W runs at once
    w_chunk: Column
    w_microbatch: Column
    w_buffer: Column  # of what its F left; -1: no W
    w_from_b: Column  # buffer of what its B left
    y_here: Column  # in the own inbox of activations, for this tick's output
    y_last: Column  # in the own inbox of gradients, for the last stage's output
    y_up: Column  # in the inbox, for the output that the rank before sends in this tick
    y_down: Column  # for the output that the rank after sends
    dx_here: Column
    dx_up: Column
    dx_down: Column


@dataclasses.dataclass(frozen=True)
class Program:
    """Instructions, and the memory they need."""

    steps: Lockstep
    instructions: Instructions
    branches: tuple[tuple[Kind, ...], ...]
    """Kinds of operation that a tick can hold on a rank."""
    stage_of: tuple[tuple[int, ...], ...]
    """Stage of each rank and chunk."""
    buffers_b: int
    """Buffers for what F leaves to B and W: the table's peak of activations."""
    buffers_w: int
    """Buffers for what B leaves to W."""
    inbox: tuple[int, int]
    """Buffers for values waiting: activations, gradients."""

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
    def steady_state(self) -> np.ndarray:
        """Ticks in which every rank has such a pair, [ticks] bool."""
        return (self.instructions.branch == self.pair).all(axis=0)


def forms(schedule: Schedule) -> dict[str, Lockstep]:
    """Build what can be executed of a schedule: its cells as they are, or backwards cut in two.

    A tick lasts as long as its longest cell: an F beside a BW waits for it, so 1F1B and its kin
    gain by the cut, and DualPipe, whose pairs are whole ticks, loses.
    """
    return {
        "branched": latest(lockstep(schedule)),
        "branched, backwards cut": latest(lockstep(split_backward(schedule))),
    }


def shortest(schedule: Schedule, times: Times | None = None) -> Lockstep:
    """Choose the form that takes least time by count, all times 1 by default."""
    return min(forms(schedule).values(), key=lambda steps: lockstep_time(steps, times or Times()))


class _Buffers:
    """Numbers given out and taken back, the lowest first."""

    def __init__(self) -> None:
        self.free: list[int] = []
        self.count = 0

    def take(self) -> int:
        if self.free:
            return heapq.heappop(self.free)
        self.count += 1
        return self.count - 1

    def give(self, number: int) -> None:
        heapq.heappush(self.free, number)


class _Rank:
    """The memory of one rank while its row is read."""

    def __init__(self) -> None:
        self.for_b, self.for_w = _Buffers(), _Buffers()
        self.x, self.gradient = _Buffers(), _Buffers()
        self.at: dict[tuple[str, int, int], tuple[_Buffers, int]] = {}

    def put(self, what: str, op: Op, buffers: _Buffers) -> int:
        number = buffers.take()
        self.at[what, op.stage, op.microbatch] = (buffers, number)
        return number

    def look(self, what: str, op: Op) -> int:
        return self.at[what, op.stage, op.microbatch][1]

    def drop(self, what: str, op: Op) -> int:
        buffers, number = self.at.pop((what, op.stage, op.microbatch))
        buffers.give(number)
        return number


def compile_table(steps: Lockstep) -> Program:
    """Give every value of a lockstep table its buffer."""
    schedule, table = steps.schedule, steps.table
    fields = {name: np.full((len(table), steps.slots), -1, np.int32)
              for name in Instructions._fields}
    ranks = [_Rank() for _ in table]
    branches = tuple(sorted({_kinds(cell) for row in table for cell in row}))
    for tick in range(steps.slots):
        column = {name: values[:, tick] for name, values in fields.items()}
        for rank, row in enumerate(table):
            column["branch"][rank] = branches.index(_kinds(row[tick]))
            _work(row[tick], schedule, ranks[rank],
                  {name: values[rank : rank + 1] for name, values in column.items()})
        for rank, row in enumerate(table):
            for op in row[tick]:
                _send(op, rank, schedule, ranks, column)
    return Program(
        steps=steps,
        instructions=Instructions(**fields),
        branches=branches,
        stage_of=_stage_of(steps),
        buffers_b=max(r.for_b.count for r in ranks),
        buffers_w=max(r.for_w.count for r in ranks),
        inbox=(max(r.x.count for r in ranks), max(r.gradient.count for r in ranks)),
    )


def _kinds(cell: Cell) -> tuple[Kind, ...]:
    return tuple(kind for kind in Kind if any(op.kind is kind for op in cell))


def _stage_of(steps: Lockstep) -> tuple[tuple[int, ...], ...]:
    """Read from the table which stage each chunk of a rank is."""
    found = []
    for row in steps.table:
        stages = {op.chunk: op.stage for cell in row for op in cell}
        found.append(tuple(stages[chunk] for chunk in range(steps.schedule.chunks)))
    return tuple(found)


def _work(cell: Cell, schedule: Schedule, rank: _Rank, out: dict[str, np.ndarray]) -> None:
    """Buffers that a cell reads and writes; F takes before the backward gives back."""
    last = schedule.stages - 1
    for op in sorted(cell, key=lambda op: "FB".find(op.kind[0]) % 3):  # F, then B, then W
        if op.kind is Kind.FORWARD:
            out["f_chunk"][:], out["f_microbatch"][:] = op.chunk, op.microbatch
            out["f_buffer"][:] = rank.put("for b", op, rank.for_b)
            if op.stage:
                out["f_from"][:] = rank.drop("x", op)
        if "B" in op.kind:
            out["b_chunk"][:], out["b_microbatch"][:] = op.chunk, op.microbatch
            out["b_buffer"][:] = rank.look("for b", op)
            out["b_from"][:] = rank.drop("gradient", op)
            out["b_is_last"][:], out["b_is_first"][:] = op.stage == last, op.stage == 0
            if op.kind is Kind.INPUT:
                out["b_for_w"][:] = rank.put("for w", op, rank.for_w)
        if "W" in op.kind:
            out["w_chunk"][:], out["w_microbatch"][:] = op.chunk, op.microbatch
            out["w_buffer"][:] = rank.look("for b", op)
            if op.kind is Kind.WEIGHT:
                out["w_from_b"][:] = rank.look("for w", op)
    for op in cell:
        if "W" in op.kind:
            rank.drop("for b", op)
            if op.kind is Kind.WEIGHT:
                rank.drop("for w", op)


def _send(op: Op, rank: int, schedule: Schedule, ranks: list[_Rank],
          column: dict[str, np.ndarray]) -> None:
    """Give what an operation made a buffer at its receiver."""
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
    number = where.put(what, there, where.x if is_forward else where.gradient)
    if to == rank:
        way = "here"
    elif (rank + 1) % len(ranks) == to:
        way = "up"
    else:
        assert (to + 1) % len(ranks) == rank, f"rank {rank} sends to {to}, which is no neighbor"
        way = "down"
    assert column[f"{name}_{way}"][to] == -1, f"rank {to} receives two values in one tick"
    column[f"{name}_{way}"][to] = number
