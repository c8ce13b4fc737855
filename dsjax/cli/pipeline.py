"""`dsjax pipeline`: print a pipeline schedule, prove it, and say what it costs."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from rich.table import Table

from dsjax.config.flags.flag_tree import Word
from dsjax.config.flags.refusal import typed_as
from dsjax.disk import to_json
from dsjax.errors import UserError
from dsjax.pipeline.instructions import forms
from dsjax.pipeline.schedules import draw
from dsjax.pipeline.schedules.build import build
from dsjax.pipeline.schedules.simulate import (
    Timeline,
    Times,
    formula_activations,
    formula_bubble,
    is_in_regime,
    lockstep_time,
    simulate,
)
from dsjax.pipeline.schedules.table import Op
from dsjax.pipeline.schedules.validate import Proof, validate
from dsjax.terminal import Console


@dataclass(frozen=True)
class Pipeline:
    """Print a pipeline schedule as a table of slots, with its makespan, bubble and memory."""

    name: Annotated[str, Word("SCHEDULE")]
    """gpipe, 1f1b, interleaved, zb-h1, zb-v, dualpipe or dualpipe-v."""
    ranks: int
    """Ranks (devices) of the pipeline."""
    microbatches: int
    """Microbatches in a step."""
    chunks: int | None = None
    """Stages a rank, of interleaved only (2 by default)."""
    times: Times = field(default_factory=Times)
    """Durations of the operations on one stage, in any unit."""
    svg: Path | None = None
    """File to draw the timeline into."""
    json: bool = False
    """Print one JSON object instead."""


MOST = 2_000_000
"""Ranks times stages of a rank times microbatches that are still a matter of a minute."""


def main(args: Pipeline) -> int:
    """Run the command; returns the exit status."""
    chunks = args.chunks or (1 if args.name in ("gpipe", "1f1b", "zb-h1") else 2)
    cells = args.ranks * chunks * args.microbatches
    if cells > MOST:
        raise UserError(
            f"{args.microbatches} microbatches on {args.ranks} ranks of {chunks} stages make "
            f"{cells:,} cells; choose fewer, at most {MOST:,} in all"
        )
    with typed_as("ranks", "microbatches", "chunks"):
        schedule = build(args.name, args.ranks, args.microbatches, chunks=args.chunks)
    proof = validate(schedule)
    timeline = simulate(schedule, args.times)
    if args.svg is not None:
        try:
            args.svg.write_text(draw.svg(timeline))
        except OSError as error:
            raise UserError(
                f"cannot write {args.svg}: {error.strerror}; choose another --svg"
            ) from error
    if args.json:
        print(to_json(summary(proof, timeline)))
    else:
        _print(proof, timeline)
    return 0


def summary(proof: Proof, timeline: Timeline) -> dict[str, Any]:
    """Everything that `--json` prints; `table[rank][slot]` is the lockstep table.

    A cell is null (idle) or a list of one operation, or of the F and the BW that run overlapped.
    Makespan and bubble are simulated with `times`; activations are in units of one stage of one
    microbatch, `weight_copies` in shares of model / stages, as in the report's table. The formula
    of the bubble is null where it does not hold (dsjax.pipeline.schedules.simulate).
    """
    schedule, steps = timeline.schedule, proof.certificate
    counts = {str(rank): list(row) for rank, row in enumerate(schedule.steps)}
    return {
        "schedule": schedule.name,
        "ranks": schedule.ranks,
        "stages": schedule.stages,
        "microbatches": schedule.microbatches,
        "times": dataclasses.asdict(timeline.times) | {"overlapped": timeline.times.pair},
        "makespan": timeline.makespan,
        "bubble": timeline.bubble,
        "bubble_fraction": timeline.bubble / timeline.makespan if timeline.makespan else 0.0,
        "bubble_formula": _formula(timeline),
        "peak_activations": max(proof.peak_activations),
        "peak_activations_formula": formula_activations(schedule),
        "weight_copies": schedule.chunks,
        "model_copies": schedule.copies,
        "bubble_by_rank": timeline.bubbles,
        "peak_activations_by_rank": proof.peak_activations,
        "weight_copies_by_rank": [schedule.chunks] * schedule.ranks,
        **({"step_counts_by_rank": counts} if counts else {}),
        "work_by_rank": [dataclasses.asdict(work) for work in steps.work],
        "lockstep": _forms(timeline),
        "proof": {
            "operations": proof.operations,
            "dependencies": proof.dependencies,
            "transfers": proof.transfers,
        },
        "home": schedule.home,
        "table": [[[_plain(op) for op in cell] or None for cell in row] for row in steps.table],
    }


def _formula(timeline: Timeline) -> float | None:
    """The closed form of the bubble, where it holds."""
    schedule, times = timeline.schedule, timeline.times
    return formula_bubble(schedule, times) if is_in_regime(schedule, times) else None


def _forms(timeline: Timeline) -> dict[str, Any]:
    """Slots and time of each form that can be executed, and the name of the shortest."""
    found = forms(timeline.schedule)
    times = {name: lockstep_time(steps, timeline.times) for name, steps in found.items()}
    counted: dict[str, Any] = {
        name: {"slots": steps.slots, "time": times[name]} for name, steps in found.items()}
    return counted | {"shortest": min(times, key=lambda name: times[name])}


def _plain(op: Op) -> dict[str, Any]:
    return {
        "kind": op.kind,
        "stage": op.stage,
        "microbatch": op.microbatch,
        "chunk": op.chunk,
        "direction": op.direction,
    }


def _print(proof: Proof, timeline: Timeline) -> None:
    """Print table, timeline, the numbers by rank, and the summary."""
    console = Console()
    head, tail = _words(proof, timeline)
    console.print(head, draw.grid(proof.certificate, console.width), sep="\n\n", soft_wrap=True)
    console.print(f"\ntimeline, from 0 to {float(timeline.makespan):g}", highlight=False)
    console.print(draw.terminal(timeline, console.width), soft_wrap=True)
    console.print(_by_rank(proof, timeline))
    console.print(tail, highlight=False, soft_wrap=True)


def _words(proof: Proof, timeline: Timeline) -> tuple[str, str]:
    """Say what the table shows, and what it costs."""
    schedule, steps, formula = timeline.schedule, proof.certificate, _formula(timeline)
    share = float(timeline.bubble / (timeline.makespan or 1))
    head = f"""\
{schedule.name}: {schedule.ranks} ranks, {schedule.stages} stages, \
{schedule.microbatches} microbatches, {steps.slots} equal slots
F forward, B input-gradient, W weight-gradient, BW full backward of a microbatch; F with BW overlap
' second chunk of the rank (dualpipe: second direction)   . idle"""
    tail = f"""
makespan {timeline.makespan:g}, bubble {timeline.bubble:g} ({share:.1%} of it; formula \
{"not for these times" if formula is None else f"{formula:g}"}), in times of one stage
activations: at most {max(proof.peak_activations)} alive on a rank (formula \
{formula_activations(schedule)}), each of one stage and one microbatch
weights: {schedule.chunks} of {schedule.stages} stages on each rank, {schedule.copies} cop\
{"y" if schedule.copies == 1 else "ies"} of the model in all
executed in equal slots: {_said(_forms(timeline))}
proved: {proof.operations} operations once each, {proof.dependencies} dependencies, \
{proof.transfers} of them across ranks"""
    return head, tail


def _said(found: dict[str, Any]) -> str:
    """The forms in a line, the shortest marked."""
    return "; ".join(
        f"{name} {form['slots']} slots, {form['time']:g}" + (
            " (shortest)" if name == found["shortest"] else "")
        for name, form in found.items() if name != "shortest")


def _by_rank(proof: Proof, timeline: Timeline) -> Table:
    """Draw the numbers that differ from rank to rank."""
    table = Table(box=None, pad_edge=False, header_style="")
    heads = ["rank", "F", "B", "W", "BW", "F&BW", "busy", "bubble", "peak activations"]
    for head in heads + (["steps 1 to 8"] if timeline.schedule.steps else []):
        table.add_column(head, justify="right")
    for rank, work in enumerate(proof.certificate.work):
        numbers = [work.forward, work.input, work.weight, work.backward, work.paired]
        times = [timeline.busy[rank], timeline.bubbles[rank]]
        cells = [rank, *numbers, *(f"{time:g}" for time in times), proof.peak_activations[rank]]
        counts = [" ".join(map(str, row)) for row in timeline.schedule.steps[rank : rank + 1]]
        table.add_row(*map(str, cells), *counts)
    return table
