"""The command line that all experiments share: `--help`, `--quick`, `--dirty`, and their own flags.

A `run.py` is `sys.exit(command.main(STUDY))`. Parts are named first (`run curves`), then flags.
Nothing is imported that measures until the words are understood. `--quick` runs a small form whose
records and figures go to runs/quick; other records need a tree as committed, or `--dirty`.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import importlib
import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from dsjax.errors import UserError, printable
from experiments.common import claims, index, record
from experiments.common.record import Tree
from experiments.common.study import RUNS, Flag, Part, Study

QUICK = RUNS / "quick"


@dataclass(frozen=True)
class Asked:
    """One call of a part: its flags, and the folders of its records and figures."""

    command: str
    folder: Path
    runs: Path
    is_quick: bool = False
    is_timed: bool = False
    began: Tree = field(default_factory=record.tree)
    values: dict[str, Any] = field(default_factory=dict)

    @property
    def records(self) -> Path:
        """Folder of the records."""
        return self.folder / "records"

    @property
    def is_redraw(self) -> bool:
        """True where figures are drawn from records alone."""
        return bool(self.values.get("redraw"))

    def write(self, name: str, claim: str, columns: Sequence[str], rows: Sequence[Sequence[Any]],
              **more: Any) -> None:
        """Write a record; a quick one is marked as such and shown, a timed one has matmul rates."""
        if self.is_timed:
            from dsjax.runtime import hardware

            more["matmul_gflop_s"] = {dtype: round(hardware.matmul_peak(dtype).flop_s / 1e9)
                                      for dtype in ("float32", "bfloat16")}
        if self.is_quick:
            more["is_quick"] = True
        made = record.write(self.records / f"{name}.json", claim, columns, rows, self.command,
                            began=self.began, **more)
        if self.is_quick:
            print(f"\n{name}: {claim}\n\n{record.table(made)}", flush=True)


class Parser(argparse.ArgumentParser):
    """A parser that refuses in a sentence."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; {self.prog} --help names what there is")


def main(study: Study, only: str | None = None, argv: Sequence[str] | None = None) -> int:
    """Run the parts of a study that are asked for, or one part alone; returns the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        return _run(study, only, words)
    except UserError as error:
        print(printable(f"experiments: {error}"), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nexperiments: interrupted; the same command starts again, or goes on where the "
              "part is resumable", file=sys.stderr)
        return 130
    except SystemExit as stop:  # argparse leaves this way after its help
        return stop.code if isinstance(stop.code, int) else 1


def _run(study: Study, only: str | None, words: list[str]) -> int:
    names = [part.name for part in study.parts]
    named = [] if only else list(itertools.takewhile(lambda word: word in names, words))
    chosen = [only] if only else named or list(study.whole or names)
    rest = words[len(named):]
    program = f"python -m experiments.{study.name}.{only or 'run'}"
    if len(chosen) > 1:
        parser = _parser(program, study, None)
        _refuse_words(parser, study, rest)
        parser.parse_args(rest)
        return _each(study, chosen, rest)
    part = study.part(chosen[0])
    parser = _parser(program if only or not named else f"{program} {part.name}", study, part)
    if len(study.parts) > 1 and not any(not f.name.startswith("-") for f in part.flags):
        _refuse_words(parser, study, rest)
    return _one(study, part, vars(parser.parse_args(rest)), words)


def _refuse_words(parser: Parser, study: Study, rest: Sequence[str]) -> None:
    """Refuse a leading word that is no part."""
    if rest and not rest[0].startswith("-"):
        names = [part.name for part in study.parts]
        close = difflib.get_close_matches(rest[0], names, n=1)
        hint = f"did you mean {close[0]}?" if close else f"choose from {', '.join(names)}"
        parser.error(f"{study.name} has no part {rest[0]!r}: {hint}")


def _each(study: Study, names: Sequence[str], rest: Sequence[str]) -> int:
    """Run parts one after another, each in a process of its own; the first status above 0."""
    for name in names:
        command = [sys.executable, "-m", f"experiments.{study.name}.run", name, *rest]
        if status := subprocess.run(command, cwd=record.ROOT).returncode:
            return status
    return 0


def _one(study: Study, part: Part, given: dict[str, Any], words: Sequence[str]) -> int:
    """Run a part in this process, or start it in the background."""
    is_quick, is_dirty = given.pop("quick"), given.pop("dirty")
    began = record.tree()
    if not (is_quick or is_dirty or given.get("redraw") or began.is_clean):
        raise UserError(f"{began.said}, so a record would not say what was measured; commit, or "
                        "give --dirty to have records marked, or --quick for none")
    if given.pop("background", False):
        return _detach(study, part, [word for word in words if word != "--background"])
    if part.is_on_cpu:
        os.environ["JAX_PLATFORMS"] = "cpu"
    if part.devices:
        os.environ["JAX_NUM_CPU_DEVICES"] = str(part.devices)
    if part.is_tuned:
        from dsjax.cli.process.tune import tune_process

        tune_process()
    folder, runs = study.folder, study.runs
    if is_quick:
        folder = QUICK / study.name / part.name
        runs = folder / "runs"
        shutil.rmtree(folder, ignore_errors=True)  # an earlier quick form is no start of this one
    asked = Asked(part.command, folder, runs, is_quick, part.is_timed, began, given)
    module = importlib.import_module(f"experiments.{study.name}.{part.module or part.name}")
    status = module.main(asked)
    if is_quick:
        print(f"\nNo record of the experiment was touched; what this made is in {folder}")
    else:
        record.fill_pages()
        claims.fill_pages()
    return status or 0


def _detach(study: Study, part: Part, words: Sequence[str]) -> int:
    """Start the same command as a process of its own that outlives this one."""
    study.runs.mkdir(parents=True, exist_ok=True)
    path = study.runs / f"{part.name}.log"
    named = [] if part.name in words else [part.name]
    command = [sys.executable, "-m", f"experiments.{study.name}.run", *named, *words]
    with path.open("a") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                   start_new_session=True, cwd=record.ROOT)
    print(f"process {process.pid} goes on in the background and writes {path}; "
          "`python -m experiments` shows how far its arms are")
    return 0


def _parser(program: str, study: Study, part: Part | None) -> Parser:
    """The parser of one part, or of all together, which take only what parts share."""
    parser = Parser(prog=program, allow_abbrev=False, description=_described(study, part),
                    formatter_class=argparse.RawDescriptionHelpFormatter)
    for flag in part.flags if part else ():
        _add(parser, flag)
    quick = part.quick if part else "the small form of each part"
    parser.add_argument("--quick", action="store_true",
                        help=f"{quick}; its records go to runs/quick/{study.name}")
    parser.add_argument("--dirty", action="store_true", help="record although the tree is not as "
                        "committed; records and tables say so")
    if part and part.is_resumable:
        parser.add_argument("--background", action="store_true", help="go on in a process that "
                            f"outlives this one and writes runs/{study.name}/{part.name}.log")
    return parser


def _add(parser: argparse.ArgumentParser, flag: Flag) -> None:
    if flag.kind is bool:
        parser.add_argument(flag.name, action="store_true", help=flag.help)
        return
    more: dict[str, Any] = {"nargs": "*"} if flag.is_many else {}
    kind = _count if flag.kind is int else flag.kind
    parser.add_argument(flag.name, help=flag.help, type=kind, default=flag.default, **more)


def _count(text: str) -> int:
    """A whole number above 0."""
    if not text.isascii() or not text.isdigit() or not 0 < int(text[:19]) < 10**9:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 to 999,999,999")
    return int(text)


def _described(study: Study, part: Part | None) -> str:
    """Claim, cost and what is recorded, for the help."""
    parts = (part,) if part else study.parts
    shown = dataclasses.replace(study, parts=parts)
    made = index.lines(shown)
    if len(study.parts) > 1:
        names = ", ".join(p.name for p in study.parts)
        made += ["", f"Parts: {names}; `python -m experiments.{study.name}.run PART --help` tells "
                 "of one."]
    return "\n".join(made)
