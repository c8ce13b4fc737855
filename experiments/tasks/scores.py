"""Every task of `dsjax evaluate`, asked of two models trained here.

Both are the demo's: `tiny` on the embedded corpus, 600 steps and 1,200. The table has each measure
with its standard error beside the score of a guess.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from configs import tiny
from dsjax.cli.main import main as dsjax
from dsjax.errors import UserError
from dsjax.train import loop
from experiments.common.command import Asked

STEPS = {"demo": 600, "longer": 1200}
TASKS = ("mmlu", "arc", "hellaswag", "lambada", "gsm8k", "math500", "humaneval", "mbpp")
COLUMNS = ("model", "task", "measure", "items", "value", "standard error", "chance",
           "errors from chance")


def main(asked: Asked) -> None:
    """Train, evaluate and write the record."""
    rows: list[list[Any]] = []
    limit = asked.values["limit"]
    bits = {}
    for name in STEPS:
        folder, bits[name] = trained(asked, name)
        for task, found in evaluated(asked, folder).items():
            rows += [row(name, task, measure, found) for measure in found["measures"]]
            print(f"{name}: {task}", flush=True)
    asked.write("scores", f"scores of two models on public tasks, {limit} items of each at most "
                "(of each subject of MMLU)", COLUMNS, rows, limit=limit,
                heldout_bits_per_byte=bits)


def trained(asked: Asked, name: str) -> tuple[Path, float]:
    """The folder of a model, and its bits per byte of held-out text; one that is there stays."""
    run = tiny.config()
    steps = 20 if asked.is_quick else STEPS[name]
    folder = asked.runs / name
    run = dataclasses.replace(
        run, train=dataclasses.replace(run.train, steps=steps),
        output=dataclasses.replace(run.output, folder=str(folder)))
    outcome = loop.train(run)
    if not outcome.is_complete or outcome.heldout is None:
        raise KeyboardInterrupt
    return folder, round(outcome.heldout.bits_per_byte, 4)


def evaluated(asked: Asked, folder: Path) -> dict[str, Any]:
    """Results of `dsjax evaluate` on a model; it goes on where it was stopped."""
    out = folder / "evaluate"
    tasks = ("arc",) if asked.is_quick else TASKS
    words = ["evaluate", str(folder), "--tasks", ",".join(tasks), "--data", str(data(asked)),
             "--limit", str(asked.values["limit"]), "--out", str(out), "--allow-code"]
    if status := dsjax(words):
        raise UserError(f"dsjax {' '.join(words[:4])} ended with status {status}; what it said "
                        "stands above")
    found: dict[str, Any] = json.loads((out / "results.json").read_text())
    return {task: found["tasks"][task] for task in tasks}


def data(asked: Asked) -> Path:
    """The folder of the tasks' files; a quick form makes one."""
    if not asked.is_quick:
        return Path(asked.values["data"])
    folder = asked.runs / "data"
    folder.mkdir(parents=True, exist_ok=True)
    lines = [{"question": f"Which is {number}?", "answerKey": "ABCD"[number],
              "choices": {"text": ["none", "one", "two", "three"], "label": list("ABCD")}}
             for number in range(3)]
    (folder / "arc-challenge-test.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in lines))
    return folder


def row(model: str, task: str, measure: str, found: dict[str, Any]) -> list[Any]:
    """A row of the record."""
    one = found["measures"][measure]
    value, error, chance = one["value"], one["stderr"], one.get("chance")
    away = "" if chance is None or not error else f"{(value - chance) / error:+.1f}"
    return [model, task, measure, found["items"], _shown(value), _shown(error), _shown(chance),
            away]


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}" if value < 1000 else f"{value:,.0f}"
