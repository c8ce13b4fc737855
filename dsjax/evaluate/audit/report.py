"""The report of an audit: tables for people, JSON for programs, the worst matches side by side."""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from dsjax import disk
from dsjax.errors import printable
from dsjax.evaluate.audit.findings import Dirt, Match, TaskDirt
from dsjax.evaluate.audit.scan import Found, settings_as_json
from dsjax.evaluate.audit.scores import Mean, Score
from dsjax.evaluate.audit.words import plain, words

REPORT, DIRTY = "report.json", "dirty.jsonl"
LONG = 600
"""Characters of a match that are shown."""


def table(tasks: Sequence[TaskDirt]) -> Table:
    """A row a task."""
    drawn = Table(box=box.SIMPLE_HEAD)
    for name in ("task", "items", "exact", "near", "dirty", "share", "worst", "common", "short"):
        drawn.add_column(name, justify="left" if name == "task" else "right")
    for task in tasks:
        worst = max((one.worst for one in task.dirty), default=0.0)
        drawn.add_row(task.name, f"{task.items:,}", f"{task.exact:,}", f"{task.near:,}",
                      f"{len(task.dirty):,}", f"{task.share:.2%}", f"{worst:.0%}",
                      f"{task.common:,}", f"{task.short:,}")
    return drawn


def score_table(scores: Sequence[Score]) -> Table:
    """A row a measure, on clean and dirty items."""
    drawn = Table(box=box.SIMPLE_HEAD)
    for name in ("task", "measure", "clean", "items", "dirty", "items"):
        drawn.add_column(name, justify="left" if name in ("task", "measure") else "right")
    for one in scores:
        drawn.add_row(one.task, one.measure, _mean(one.clean), f"{one.clean.items:,}",
                      _mean(one.dirty), f"{one.dirty.items:,}")
    return drawn


def _mean(mean: Mean) -> str:
    if not mean.items:
        return "-"
    return f"{mean.value:.4f}" + ("" if math.isnan(mean.stderr) else f" +- {mean.stderr:.4f}")


def worst(task: TaskDirt, count: int) -> list[Table]:
    """The worst items of a task, each beside its passage; words that both have are marked."""
    made = []
    for dirt in task.dirty[:count]:
        for kind, share, match in (("exact", dirt.share, dirt.exact),
                                   ("near", dirt.similarity, dirt.near)):
            if match is not None and not (kind == "near" and _is_there(dirt.exact, match)):
                made.append(_beside(task, dirt, f"{kind}, {share:.0%}", match))
    return made


def _is_there(shown: Match | None, match: Match) -> bool:
    """Tell whether a match lies where one that is shown does."""
    if shown is None or shown.passage.document != match.passage.document:
        return False
    return max(shown.passage.start, match.passage.start) < min(shown.passage.stop,
                                                               match.passage.stop)


def _beside(task: TaskDirt, dirt: Dirt, said: str, match: Match) -> Table:
    passage = match.passage
    drawn = Table(box=box.SIMPLE_HEAD, expand=True)
    drawn.add_column(Text(f"{task.name} {dirt.item.id} ({said})"), ratio=1)
    drawn.add_column(Text(f"{passage.document.name} at {passage.start:,}"), ratio=1)
    here, there = match.text[:LONG].split(), passage.text[:LONG].split()
    same = difflib.SequenceMatcher(None, [plain(words(word)) for word in here],
                                   [plain(words(word)) for word in there], autojunk=False)
    blocks = [block for block in same.get_matching_blocks() if block.size]
    drawn.add_row(_marked(here, [(b.a, b.a + b.size) for b in blocks]),
                  _marked(there, [(b.b, b.b + b.size) for b in blocks]))
    return drawn


def _marked(tokens: list[str], runs: Sequence[tuple[int, int]]) -> Text:
    """A text whose runs of shared words stand bold and in square brackets."""
    made, at = [], 0
    for start, stop in runs:
        made += [(word, "") for word in tokens[at:start]]
        made.append((f"[{' '.join(tokens[start:stop])}]", "bold"))
        at = stop
    made += [(word, "") for word in tokens[at:]]
    text = Text()
    for i, (word, style) in enumerate(made):
        text.append(" " * (i > 0) + printable(word), style)
    return text


def as_json(found: Found, tasks: Sequence[TaskDirt], corpus: Sequence[str],
            scores: Sequence[Score] = ()) -> dict[str, Any]:
    """The whole report but for the matches."""
    made: dict[str, Any] = {
        "corpus": list(corpus), "settings": settings_as_json(found.looked.settings),
        "documents": found.number, "characters": found.characters, "words": found.words,
        "documents_with_hits": len({*found.hits[:, 0].tolist(),
                                    *(row[0] for row in found.copy_rows)}),
        "common_stretches": int(found.is_common.sum()),
        "index_bytes": found.looked.bytes,
        "tasks": {task.name: task.as_json() for task in tasks},
    }
    if scores:
        made["scores"] = [score.as_json() for score in scores]
    return made


def write(folder: Path, report: dict[str, Any], tasks: Sequence[TaskDirt]) -> None:
    """Write report.json and dirty.jsonl into a folder, each whole or not at all."""
    disk.make_folder(folder, "name another --out")
    lines = (disk.to_json(one.as_json(task.name)) + "\n" for task in tasks for one in task.dirty)
    disk.write_whole(folder / DIRTY, "".join(lines), "name another --out")
    disk.write_json(folder / REPORT, report, "name another --out")
