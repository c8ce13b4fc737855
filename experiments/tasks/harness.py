"""The same models asked by lm-evaluation-harness, over its own definitions of the tasks."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from dsjax.errors import UserError
from experiments.common.command import Asked
from experiments.common.record import ROOT
from experiments.tasks.scores import STEPS, data, evaluated, trained

LOCAL = {"arc": "local_arc_challenge", "hellaswag": "local_hellaswag",
         "lambada": "local_lambada_openai", "gsm8k": "local_gsm8k"}
COLUMNS = ("model", "task", "measure", "dsjax evaluate", "lm-evaluation-harness", "difference")


def main(asked: Asked) -> None:
    """Ask both and write the record."""
    os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"
    try:
        import lm_eval
    except ImportError as error:
        raise UserError(f"the harness needs {error.name}, which is not installed; pip install "
                        "'.[lm-eval]'") from None
    from dsjax.evaluate.harness.model import DsjaxLM

    tasks = {"arc": LOCAL["arc"]} if asked.is_quick else LOCAL
    described = placed(asked, list(tasks.values()))
    rows: list[list[Any]] = []
    for name in STEPS:
        folder, _ = trained(asked, name)
        ours = evaluated(asked, folder)
        theirs = lm_eval.simple_evaluate(
            DsjaxLM(folder=str(folder)), tasks=list(tasks.values()), limit=asked.values["limit"],
            task_manager=lm_eval.tasks.TaskManager(include_path=str(described)))["results"]
        for task, called in tasks.items():
            rows += compared(name, task, ours[task]["measures"], theirs[called])
    asked.write("harness", "measures of dsjax evaluate and of lm-evaluation-harness "
                f"{lm_eval.__version__} on the same items", COLUMNS, rows,
                limit=asked.values["limit"])


def compared(model: str, task: str, ours: dict[str, Any],
             theirs: dict[str, Any]) -> list[list[Any]]:
    """A row for each measure that both have."""
    rows = []
    for measure, one in ours.items():
        key = measure if "," in measure else f"{measure},none"
        if key in theirs:
            rows.append([model, task, measure, f"{one['value']:.6g}", f"{theirs[key]:.6g}",
                         f"{abs(one['value'] - theirs[key]):.1e}"])
    if not rows:
        raise ValueError(f"{task}: no measure in common, {list(ours)} and {list(theirs)}")
    return rows


def placed(asked: Asked, names: list[str]) -> Path:
    """Copies of the tasks' descriptions that name the files of `--data`."""
    folder, files = asked.runs / "described", data(asked)
    folder.mkdir(parents=True, exist_ok=True)

    def found(match: re.Match[str]) -> str:
        for end in ("", ".gz", ".xz", ".zst"):
            path = files / f"{match[1]}.jsonl{end}"
            if path.is_file():
                return str(path.resolve())
        raise UserError(f"{files} lacks {match[1]}.jsonl, also as .gz; docs/evaluation.md says "
                        "where it comes from")

    for path in (ROOT / "docs" / "harness").glob("*.yaml"):
        text = path.read_text()
        if any(f"task: {name}\n" in text for name in names):
            (folder / path.name).write_text(re.sub(r"data/eval/([\w-]+)\.jsonl", found, text))
    return folder
