"""Schedules as executed: slots, work of each rank, memory, time by form.

On virtual devices of one CPU all ranks share the cores, so the time of a step there is the work of
all ranks together, and idle slots cost nothing. The time that ranks of their own would take is
counted instead: a slot lasts as long as the longest cell in it, with the times of F, B, W and the
pair measured one rank at a time, the others idle.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

from dsjax.pipeline import executor
from dsjax.pipeline.instructions import Program, compile_table, shortest
from dsjax.pipeline.instructions import forms as program_forms
from dsjax.pipeline.schedules.build import NAMES, Lockstep, build, lockstep
from dsjax.pipeline.schedules.simulate import Times, lockstep_time
from dsjax.pipeline.schedules.table import Kind
from dsjax.pipeline.schedules.validate import peak_activations
from experiments.common.command import Asked
from experiments.pipelines import built

RANKS, MICROBATCHES, REPEATS, ROUNDS = 4, 8, 24, 12
QUICK_TIMES = Times(0.01, 0.01, 0.01, 0.03)  # all equal and not measured


def cell_times(rounds: int) -> Times:
    """Seconds of F, B, W and the pair on a stage of two layers, each the least of its rounds."""
    run = built.run_of(MICROBATCHES)
    made = {name: lockstep(build(name, RANKS, MICROBATCHES)) for name in ("zb-h1", "dualpipe")}
    pair = (Kind.FORWARD, Kind.BACKWARD)
    wanted: dict[str, tuple[Lockstep, tuple[Kind, ...]]] = {
        "idle": (made["zb-h1"], ()),
        "F": (made["zb-h1"], (Kind.FORWARD,)),
        "B": (made["zb-h1"], (Kind.INPUT,)),
        "W": (made["zb-h1"], (Kind.WEIGHT,)),
        "pair": (made["dualpipe"], pair),
    }
    programs = {}
    for name, which in wanted.items():
        repeats = 1 if name == "idle" else REPEATS
        programs[name] = built.piped(run, built.only(*which, repeats))
        print(name, "compiled", flush=True)
    taken = {n: min(t) for n, t in built.in_turn(programs, run, rounds).items()}
    each = {n: (t - taken["idle"]) / REPEATS for n, t in taken.items()}
    return Times(each["F"], each["B"], each["W"], each["pair"])


def scaled(times: Times, by: float) -> Times:
    """Times of a thinner stage."""
    assert times.overlapped is not None
    return Times(times.forward * by, times.input * by, times.weight * by, times.overlapped * by)


def buffer_bytes(run: Any, program: Program) -> int:
    """Bytes of one more buffer of activations, by the compiler: what it adds to the program."""
    more = dataclasses.replace(program, buffers_b=program.buffers_b + 1)
    sizes = [built.piped(run, p).memory_analysis().temp_size_in_bytes for p in (program, more)]
    return sizes[1] - sizes[0]


def main(asked: Asked) -> None:
    """Execute every schedule and count; write the three records."""
    run = built.run_of(MICROBATCHES)
    times = QUICK_TIMES if asked.is_quick else cell_times(ROUNDS)
    names = ("1f1b",) if asked.is_quick else NAMES
    programs: dict[Any, Any] = {}
    chosen, found = {}, []
    for name in names:
        schedule = build(name, RANKS, MICROBATCHES)
        chosen[name] = compile_table(shortest(schedule))
        programs[name] = built.piped(run, chosen[name])
        print(name, "compiled", flush=True)
    bytes_of = {name: buffer_bytes(run, chosen[name])
                for name in ("1f1b", "zb-v", "dualpipe", "dualpipe-v") if name in names}
    p, batch = built.inputs(run)
    memory, work, forms = [], [], []
    for name in names:
        program, schedule = chosen[name], build(name, RANKS, MICROBATCHES)
        outcome = jax.device_get(programs[name](p, batch))
        executed = executor.executed_work(program, outcome.executed)
        assert executed == program.steps.work, f"{name} did not run its table"
        layers = run.model.layers // schedule.stages
        peak = max(peak_activations(schedule.table))
        size = bytes_of.get(name) or bytes_of["1f1b" if layers == 2 else "zb-v"]
        temp = programs[name].memory_analysis().temp_size_in_bytes
        memory.append([name, layers, peak, program.buffers_b, *program.inbox, program.buffers_w,
                       f"{program.buffers_b * size / 2**20:.1f}",
                       f"{temp / 2**20:.1f}"])
        slots = program.steps.slots
        work.append([name, slots, *_ranges(executed), "equal"])
        thin = scaled(times, layers / 2)
        made = program_forms(schedule)
        by_form = {f: lockstep_time(steps, thin) for f, steps in made.items()}
        best = min(by_form, key=lambda f: by_form[f])
        busy = max(sum(thin.of(cell) for cell in row if cell) for row in program.steps.table)
        forms.append([name, slots, *(f"{1e3 * t:.0f}" for t in by_form.values()),
                      f"{1e3 * busy:.0f}", best])
        found.append({"schedule": name, "seconds": by_form, "temp_bytes": temp})
    where = {"ranks": RANKS, "microbatches": MICROBATCHES}
    asked.write(
        "memory",
        "each schedule works in one fixed memory with as many buffers as its table's peak",
        ["schedule", "layers a stage", "peak of the table", "buffers", "inbox x", "inbox dx",
         "buffers for W", "activations MiB", "all temporaries MiB"],
        memory, unit="buffers; MiB a rank by the compiler's memory_analysis",
        bytes_of_a_buffer=bytes_of, **where,
    )
    asked.write(
        "work",
        "every rank executes its row of the table and nothing else",
        ["schedule", "slots", "F", "B", "W", "BW", "F&BW", "idle", "table"], work,
        unit="cells a rank, least to most", **where,
    )
    asked.write(
        "forms",
        "the form that runs is the shorter one",
        ["schedule", "slots", "branched ms", "backward cut ms", "busiest rank ms", "shortest"],
        forms, unit="ms of a step, counted with measured times of cells",
        cell_ms={"F": 1e3 * times.forward, "B": 1e3 * times.input, "W": 1e3 * times.weight,
                 "F&BW": 1e3 * times.pair},
        measured=found, **where,
    )


def _ranges(work: Any) -> list[str]:
    rows = [[getattr(w, f.name) for w in work] for f in dataclasses.fields(work[0])]
    return [f"{min(r)}" if min(r) == max(r) else f"{min(r)} to {max(r)}" for r in rows]
