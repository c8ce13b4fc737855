"""Items of tasks in the embedded corpus and in other text."""

from __future__ import annotations

import tempfile
from pathlib import Path

from dsjax.data import sources
from dsjax.evaluate.audit import corpus, findings, items, scan
from dsjax.evaluate.audit.items import Task
from experiments.common.command import Asked
from experiments.contamination import planted

COLUMNS = ("corpus", "MB", "task", "items", "exact", "near", "common only", "dirty", "worst")


def main(asked: Asked) -> None:
    """Audit every corpus against all tasks and write the record."""
    tasks = items.tasks(asked.values["against"] or ())
    if asked.is_quick or not tasks:
        tasks = [made_up(100)]
    looked = scan.Looked(tasks, scan.Settings())
    rows, matches = [], []
    for name in (sources.EMBEDDED, *(asked.values["text"] or ())):
        found = scan.scan(looked, corpus.pieces([name], "text", looked.overlap))
        called = items.stem(Path(name)).removesuffix(".txt")
        print(f"{called}: {found.characters:,} characters", flush=True)
        for task in findings.of(found):
            worst = max((one.worst for one in task.dirty), default=0)
            rows.append([called, f"{found.characters / 1e6:.1f}", task.name, f"{task.items:,}",
                         task.exact, task.near, task.common, f"{task.share:.2%}",
                         f"{worst:.0%}"])
            matches += [one.as_json(task.name) | {"corpus": called} for one in task.dirty[:3]]
    for match in matches:  # a path is of one machine
        for kind in ("exact", "near"):
            if match[kind] and match[kind]["match"]:
                told = match[kind]["match"]
                told["document"] = Path(told["document"]).name
                told["text"], told["passage"] = told["text"][:200], told["passage"][:200]
    asked.write("overlap", "items of tasks in text, by stretches of 13 words and by near copies",
                COLUMNS, rows, matches=matches)


def made_up(number: int) -> Task:
    """A task of made-up items."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "made-up.jsonl"
        return items.tasks([planted.write_lines(path, planted.items(number, 1))])[0]
