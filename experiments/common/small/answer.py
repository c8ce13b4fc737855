"""One way from arms to an answer: train what has no record, judge by rule, write table and figure.

A study that trains arms gives its arms, a table, a judge and a drawing; everything here reads
records alone, so `--redraw` and the tests come to the same as the run did.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsjax.errors import UserError
from experiments.common.command import Asked
from experiments.common.small import trials
from experiments.common.small.trials import Measure, Trial
from experiments.common.small.verdicts import Interval, paired

Record = dict[str, Any]
Found = Mapping[str, Record]
"""Records of arms by name."""
Verdicts = dict[str, dict[str, str]]
"""By the key of a claim: its verdict, and the number that it rests on."""


@dataclass(frozen=True)
class Answer:
    """Parts of a study that read its arms' records.

    table: columns and rows; judge: verdicts, called where all arms are there; draw: the figure.
    """

    name: str
    claim: str
    table: Callable[[Found], tuple[Sequence[str], list[list[Any]]]]
    judge: Callable[[Found], Verdicts]
    draw: Callable[[Found, Path], None]


def main(asked: Asked, of: Sequence[Trial], answer: Answer,
         measure: Measure = trials.nothing) -> int:
    """Train, write the record of the table and its verdicts, draw; returns the exit status."""
    if asked.is_redraw:
        answer.draw(kept(of, asked.records), asked.folder / "figure.svg")
        return 0
    wanted = trials.quick(of) if asked.is_quick else of
    found = {made["arm"]: made for made in trials.train_all(wanted, asked, measure)}
    columns, rows = answer.table(found)
    verdicts = {} if asked.is_quick else answer.judge(found)
    asked.write(answer.name, answer.claim, columns, rows, verdicts=verdicts)
    if not asked.is_quick:
        answer.draw(found, asked.folder / "figure.svg")
    return 0


def kept(of: Sequence[Trial], records: Path) -> dict[str, Record]:
    """The records of arms that are there, by name."""
    paths = {trial.name: records / f"arm-{trial.name}.json" for trial in of}
    missing = [str(path) for path in paths.values() if not path.is_file()]
    if missing:
        raise UserError(f"there is no {missing[0]} to draw from; run the study without --redraw")
    return {name: json.loads(path.read_text()) for name, path in paths.items()}


def values(made: Record, name: str) -> list[float]:
    """A named number of every seed of an arm."""
    return [float(one[name]) for one in made["of_seeds"]]


def mean(made: Record, name: str) -> float:
    """A named number, averaged over seeds."""
    found = values(made, name)
    return sum(found) / len(found)


def against(found: Found, mine: str, base: str, name: str = "nats") -> Interval:
    """The interval of a named number of an arm less that of another, seed by seed."""
    return paired(values(found[mine], name), values(found[base], name))


def said(verdict: str, number: str) -> dict[str, str]:
    """A verdict beside its number, as records hold them."""
    return {"verdict": verdict, "number": number}
