"""Results of tasks: measures with standard errors and chance levels, and their table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich import box
from rich.table import Table

from dsjax.evaluate import measures
from dsjax.evaluate.grade import estimators
from dsjax.evaluate.journal import Record
from dsjax.evaluate.measures import Measure
from dsjax.evaluate.tasks.task import Item, Task, chance

ABOVE_NOTHING = ("perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte")
"""Measures of which chance says nothing."""


@dataclass(frozen=True)
class Result:
    """Measures of a task."""

    task: Task
    items: int
    measures: dict[str, Measure]
    chance: float
    parts: dict[str, dict[str, Measure]] = field(default_factory=dict)
    """Measures of the parts of a task, by name."""
    groups: dict[str, dict[str, Measure]] = field(default_factory=dict)
    """Measures of the groups that the parts are made of."""
    cut_items: int = 0
    cut_tokens: int = 0
    """Tokens of prompts that had no room."""

    def as_json(self) -> dict[str, Any]:
        """The result as results.json has it."""
        def all_of(found: Mapping[str, Measure]) -> dict[str, Any]:
            return {name: {"value": finite(one.value),
                           "stderr": None if one.stderr is None else finite(one.stderr),
                           **({} if name in ABOVE_NOTHING else {"chance": self.chance})}
                    for name, one in found.items()}

        made = {"source": self.task.source, "items": self.items, "measures": all_of(self.measures),
                "cut": {"items": self.cut_items, "tokens": self.cut_tokens}}
        for name, several in (("parts", self.parts), ("groups", self.groups)):
            if several:
                made[name] = {one: {"items": _count(found), "measures": all_of(found)}
                              for one, found in several.items()}
        return made


def of(task: Task, items: Sequence[Item], records: Mapping[int, Record]) -> Result:
    """Sum up the records of all items of a task."""
    ordered = [records[item.index] for item in items]
    cut = [record.get("cut", 0) for record in ordered]
    parts, groups = _parts(task, items, ordered)
    found = _pooled(list(groups.values())) if groups else _measures(task, ordered)
    return Result(task, len(items), found, chance(task, [item.question for item in items]), parts,
                  groups, sum(map(bool, cut)), sum(cut))


Measures = dict[str, Measure]


def _parts(task: Task, items: Sequence[Item],
           records: Sequence[Record]) -> tuple[dict[str, Measures], dict[str, Measures]]:
    """Measures of the parts of a task and of its groups, if it has some."""
    if task.parent is None:
        return {}, {}
    by_group: dict[str, list[Record]] = {}
    for item, record in zip(items, records, strict=True):
        by_group.setdefault(item.question.group, []).append(record)
    groups = {name: _measures(task, own) for name, own in by_group.items()}
    by_part: dict[str, list[dict[str, Measure]]] = {}
    for name, found in groups.items():
        by_part.setdefault(task.parent(name), []).append(found)
    return {part: _pooled(found) for part, found in by_part.items()}, groups


def _pooled(parts: Sequence[dict[str, Measure]]) -> dict[str, Measure]:
    return {name: measures.pooled([part[name] for part in parts]) for name in parts[0]}


def _measures(task: Task, records: Sequence[Record]) -> dict[str, Measure]:
    """The measures of a task over some of its items."""
    if task.kind == "generated":
        found: dict[str, Measure] = {}
        for name in task.metrics:
            found |= _of_answers(task, name, [record["answers"] for record in records])
        return found
    if task.kind == "rolling":
        logprobs = [record["logprob"] for record in records]
        sizes = {name: [record[name] for record in records] for name in ("words", "bytes")}
        return {"word_perplexity": measures.weighted_perplexity(logprobs, sizes["words"]),
                "byte_perplexity": measures.weighted_perplexity(logprobs, sizes["bytes"]),
                "bits_per_byte": measures.bits_per_byte(logprobs, sizes["bytes"])}
    found = {name: measures.mean([record["measures"][name] for record in records])
             for name in task.metrics if name != "perplexity"}
    if "perplexity" in task.metrics:
        found["perplexity"] = measures.perplexity([record["logprob"] for record in records])
    return found


def _of_answers(task: Task, name: str,
                answers: Sequence[Sequence[Mapping[str, Any]]]) -> dict[str, Measure]:
    """The share of right answers; of several samples pass@k, and the answer most of them give."""
    verdicts = [[answer["verdicts"][name] for answer in own] for own in answers]
    rights = [[bool(verdict["is_right"]) for verdict in own] for own in verdicts]
    samples = len(rights[0])
    found = {name: measures.mean([sum(own) / samples for own in rights])}
    stem = "" if task.generated.is_code else f"{name} "
    k = 2
    while k <= samples:
        found[f"{stem}pass@{k}"] = measures.mean(
            [estimators.pass_at_k(samples, sum(own), k) for own in rights])
        k = k * 2 if k * 2 <= samples or k == samples else samples
    if samples > 1 and not task.generated.is_code:
        found[f"{stem}cons@{samples}"] = measures.mean([
            float(estimators.cons_at_k([verdict["answer"] for verdict in own], right))
            for own, right in zip(verdicts, rights, strict=True)])
    return found


def finite(value: float) -> float | None:
    """A number as JSON can hold it."""
    return value if math.isfinite(value) else None


def table(results: Sequence[Result]) -> Table:
    """Draw measures with their errors and chance levels, parts of a task below it."""
    drawn = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for head in ("task", "items", "measure", "value", "stderr", "chance"):
        drawn.add_column(head, justify="left" if head in ("task", "measure") else "right")
    for result in results:
        for name, found in {result.task.name: result.measures, **result.parts}.items():
            _rows(drawn, result, name if name == result.task.name else f"  {name}", found)
    return drawn


def _count(found: Mapping[str, Measure]) -> int:
    return next(iter(found.values())).count


def _shown(value: float) -> str:
    return f"{value:.4f}" if abs(value) < 1e5 else f"{value:.3e}"


def _rows(drawn: Table, result: Result, name: str, found: Mapping[str, Measure]) -> None:
    for i, (measure, one) in enumerate(found.items()):
        guess = "" if measure in ABOVE_NOTHING else f"{result.chance:.3f}"
        stderr = "" if one.stderr is None else _shown(one.stderr)
        first = ("", "") if i else (name, f"{_count(found):,}")
        drawn.add_row(*first, measure, _shown(one.value), stderr, guess)
