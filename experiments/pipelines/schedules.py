"""The report's Table 2, ours simulated; each schedule drawn with the same times.

Times are F = 4, B = 4, W = 3, F&B = 9 on one of 8 stages: within the regime of every closed form
(dsjax/parallel/simulate.py), and unequal, so that no term of a formula hides behind another. The
schedules with two stages a rank run on 4 ranks, as in the report's table for DualPipeV, or keep 8
ranks with stages half as thick (interleaved, ZB-V).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dsjax.pipeline.instructions import compile_table, shortest
from dsjax.pipeline.schedules import draw
from dsjax.pipeline.schedules.build import NAMES, build
from dsjax.pipeline.schedules.simulate import (
    Timeline,
    Times,
    formula_activations,
    formula_bubble,
    lockstep_time,
    simulate,
    v3_step,
)
from dsjax.pipeline.schedules.validate import validate
from experiments.common.command import Asked

MICROBATCHES = 24
TIMES = Times(forward=4, input=4, weight=3, overlapped=9)
THIN = Times(forward=2, input=2, weight=1.5, overlapped=4.5)
FORMULAS = {
    "gpipe": "(P-1)(F+B)",
    "1f1b": "(P-1)(F+B)",
    "interleaved": "(P-1)(F+B) of half a stage",
    "zb-h1": "(P-1)(F+B-2W)",
    "zb-v": "(P-1)F of half a stage",
    "dualpipe": "(P/2-1)(F&B+B-3W)",
    "dualpipe-v": "(P/2-1)(F&B+B-3W)",
}
"""As the report writes them, B a full backward."""
SIZES = [(4, 8), (8, 16), (8, 24), (16, 32), (16, 120)]
SHARES = (1.0, 0.8)  # that F&B takes of F + B + W, all 1


def simulated(name: str) -> Timeline:
    """One schedule with 8 stages' worth of work."""
    ranks = 4 if name == "dualpipe-v" else 8
    times = THIN if name in ("interleaved", "zb-v") else TIMES
    return simulate(build(name, ranks, MICROBATCHES), times)


def main(asked: Asked) -> None:
    """Draw the timelines; simulate, and write the records."""
    draw_all(asked.folder)
    if asked.is_redraw:
        return
    rows: list[list[Any]] = []
    for name in NAMES:
        timeline = simulated(name)
        schedule = timeline.schedule
        proof = validate(schedule)
        program = compile_table(shortest(schedule))
        peak = max(proof.peak_activations)
        rows.append([
            name, schedule.ranks, schedule.stages, FORMULAS[name],
            f"{formula_bubble(schedule, timeline.times):g}", f"{timeline.bubble:g}",
            f"{timeline.bubble / timeline.makespan:.1%}", f"{schedule.chunks} / {schedule.stages}",
            formula_activations(schedule), peak, program.buffers_b])
    asked.write(
        "schedules",
        "bubbles and activations of seven schedules are those of the report's closed forms",
        ["schedule", "ranks", "stages", "bubble (report)", "its value", "simulated",
         "of the step", "weights a rank", "activations (formula)", "simulated",
         "executor's buffers"],
        rows, unit="times of one stage; activations of one stage and microbatch",
        microbatches=MICROBATCHES,
    )
    lengths(asked)
    step = v3_step()
    asked.write(
        "v3_step",
        "V3's published step, simulated from its published parts",
        ["", "1F + 1B + 1W + 1F1B", "bubble", "step without optimizer"],
        [["published (ISCA'25 paper, Table 4)", "17.55", "2.06", "19.61"],
         ["simulated, 16 ranks and 120 microbatches",
          f"{step.busy[0]:.2f}", f"{step.bubbles[0]:.2f}", f"{step.makespan:.2f}"]],
        unit="s",
    )


def draw_all(folder: Path) -> None:
    """Each schedule's timeline, as SVG."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in NAMES:
        (folder / f"{name}.svg").write_text(draw.svg(simulated(name)))


def lengths(asked: Asked) -> None:
    """Lengths of steps in equal slots and without slots, at more ranks and microbatches."""
    rows = []
    for ranks, microbatches in SIZES:
        built = {name: build(name, ranks, microbatches)
                 for name in ("gpipe", "1f1b", "zb-h1", "dualpipe")}
        row: list[Any] = [ranks, microbatches]
        for share in SHARES:
            times = Times(overlapped=3 * share)
            row += [f"{lockstep_time(shortest(schedule), times):g}" for schedule in built.values()
                    if share == 1 or schedule.name == "dualpipe"]
            row.append(f"{simulate(built['dualpipe'], times).makespan:g}")
        rows.append(row)
    asked.write(
        "lengths",
        "in equal slots too a finer schedule is shorter",
        ["ranks", "microbatches", "gpipe", "1f1b", "zb-h1", "dualpipe", "dualpipe without slots",
         "dualpipe, F&B a fifth shorter", "without slots"],
        rows, unit="times of one operation of one stage",
    )
