"""Experiments as data: a claim, its parts, what each costs, and where it stands.

Every folder's `__init__.py` holds one `STUDY`. Neither it nor anything here imports JAX, so that
the index (`python -m experiments`) and `--help` answer at once and run nothing.
"""

from __future__ import annotations

import fcntl
import importlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.common.record import ROOT

ROOM = ROOT / "experiments"
RUNS = ROOT / "runs"


@dataclass(frozen=True)
class Flag:
    """An argument of a part: `--name VALUE`, a switch, or a word where the name has no dashes.

    kind: str, bool for a switch, int for a count above 0.
    """

    name: str
    help: str
    kind: type = str
    default: Any = None
    is_many: bool = False


REDRAW = Flag("--redraw", "draw the figures from the records that are there; measure nothing",
              bool)


@dataclass(frozen=True)
class Part:
    """One command of a study: what it asks, what it takes, and what it leaves.

    name: of the part, and of the module beside whose `main(asked)` measures, unless `module` says
    another. records: names of its files in `records/`; arms: a pattern of those of its arms.
    devices: virtual devices that JAX shall make. A tuned part starts as `dsjax train` does. A timed
    part's records hold the matmul rate of its process, by which its times can be read.
    """

    name: str
    command: str
    asks: str
    cost: str
    quick: str
    verdict: str | None
    records: tuple[str, ...]
    arms: str | None = None
    flags: tuple[Flag, ...] = ()
    module: str | None = None
    devices: int | None = None
    is_on_cpu: bool = False
    is_tuned: bool = False
    is_timed: bool = False
    is_resumable: bool = False


@dataclass(frozen=True)
class Claim:
    """A row of docs/claims.md: a sentence of the reports, where it stands, and what answers it.

    key: by which a part's record names its verdict and number in `verdicts`. Where a verdict stands
    here instead, `number` is its text, with numbers of records as `{RECORD: ROW / COLUMN}`.
    """

    key: str
    says: str
    source: str
    part: str
    record: str
    verdict: str | None = None
    number: str = ""


@dataclass(frozen=True)
class Study:
    """An experiment: the claim it tests, where the reports make it, and its parts.

    name: of its folder. whole: parts that `run` runs where none is named; all, if empty. claims:
    its rows of docs/claims.md.
    """

    name: str
    claim: str
    source: str
    parts: tuple[Part, ...]
    whole: tuple[str, ...] = ()
    claims: tuple[Claim, ...] = ()

    @property
    def folder(self) -> Path:
        """Its folder."""
        return ROOM / self.name

    @property
    def runs(self) -> Path:
        """Folder of its unfinished runs."""
        return RUNS / self.name

    def part(self, name: str) -> Part:
        """The part of a name."""
        return next(part for part in self.parts if part.name == name)


def studies() -> list[Study]:
    """Every experiment there is, by the name of its folder."""
    folders = sorted(p.parent for p in ROOM.glob("*/README.md"))
    return [importlib.import_module(f"experiments.{folder.name}").STUDY for folder in folders]


@dataclass(frozen=True)
class State:
    """Progress of a part: recorded, partly or open; its newest record's commit and date."""

    state: str
    commit: str | None = None
    date: str | None = None
    is_clean: bool = True
    running: tuple[str, ...] = ()


def state(study: Study, part: Part) -> State:
    """Read from the records how far a part is, and which of its arms are being trained."""
    folder = study.folder / "records"
    paths = [folder / f"{name}.json" for name in part.records]
    there = [path for path in paths if path.is_file()]
    arms = sorted(folder.glob(part.arms)) if part.arms else []
    running = tuple(_running(study.runs)) if part.arms else ()
    if not (there or arms):
        return State("open", running=running)
    found = [json.loads(path.read_text()) for path in there or arms]
    newest = max(found, key=lambda record: record["date"])
    return State("recorded" if len(there) == len(paths) else "partly", newest["commit"],
                 newest["date"], all(r["is_clean"] for r in found), running)


def verdict(study: Study, part: Part) -> str | None:
    """The verdict of a part: as it says, or as its rule made of its records; None before."""
    if part.verdict is not None:
        return part.verdict
    found: dict[str, Any] = {}
    for name in part.records:
        path = study.folder / "records" / f"{name}.json"
        if path.is_file():
            found |= json.loads(path.read_text()).get("verdicts", {})
    return "; ".join(f"{key}: {one['verdict']}" for key, one in found.items()) or None


def _running(runs: Path) -> Iterator[str]:
    """Arms whose lock a process holds, each with the step it has reached."""
    for path in sorted(runs.glob("*.lock")):
        with path.open() as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                yield f"{path.stem}{_reached(runs / path.stem)}"


def _reached(run: Path) -> str:
    """`, step 340 of 2000` of a run, as far as its files say."""
    try:
        steps = json.loads((run / "config.json").read_text())["train"]["steps"]
        with (run / "metrics.jsonl").open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - 65536))
            lines = file.read().splitlines()
        return f", step {max(json.loads(line)['step'] for line in lines[-9:-1])} of {steps}"
    except (OSError, ValueError, KeyError, TypeError):
        return ", starting"
