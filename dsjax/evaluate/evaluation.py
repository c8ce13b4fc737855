"""Evaluate a model on tasks: prepare all of them, ask what is not answered yet, sum up.

Everything that can be refused is refused before the model is asked: names, files, rows, settings of
an earlier start. Then each task is asked item by item, into its log.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from dsjax import disk
from dsjax.config.fields import did_you_mean
from dsjax.errors import UserError
from dsjax.evaluate import answers, journal, results, scored
from dsjax.evaluate.answers import Encode, Manner
from dsjax.evaluate.grade import mathematics, sandbox
from dsjax.evaluate.journal import Journal, Record
from dsjax.evaluate.likelihood import Scorer
from dsjax.evaluate.results import Result
from dsjax.evaluate.tasks import (
    arc,
    gsm8k,
    hellaswag,
    humaneval,
    lambada,
    math500,
    mbpp,
    mmlu,
    task,
    text,
)
from dsjax.evaluate.tasks.task import Item, Task
from dsjax.infer import Model
from dsjax.infer.engine.engine import Engine

TASKS = {one.name: one for one in (
    gsm8k.TASK, math500.TASK, math500.MINERVA, math500.IN_A_BOX, humaneval.TASK, mbpp.TASK,
    mmlu.TASK, arc.TASK, arc.EASY, hellaswag.TASK, lambada.TASK, text.TASK)}


@dataclass(frozen=True)
class Prepared:
    """A task with its questions, and how they are asked."""

    task: Task
    items: list[Item]
    shots: int
    manner: Manner

    def settings(self, others: dict[str, Any]) -> dict[str, Any]:
        """Everything its results depend on, but for the model and the questions."""
        own = {"source": self.task.source, "shots": self.shots, **others}
        return own | (asdict(self.manner) if self.task.kind == "generated" else {})


def named(names: str, flag: str = "--tasks") -> list[Task]:
    """The tasks of a comma-separated list, each once, in its order."""
    asked = [name.strip() for name in names.split(",") if name.strip()]
    if not asked:
        raise UserError(f"{flag} is empty; choose from {', '.join(TASKS)}")
    for name in asked:
        if name not in TASKS:
            raise UserError(f"there is no task {name[:40]!r}{did_you_mean(name, TASKS)}; choose "
                            f"from {', '.join(TASKS)}")
    return [TASKS[name] for name in dict.fromkeys(asked)]


def prepare(tasks: Sequence[Task], data: Path, manner: Manner, shots: int | None = None,
            limit: int | None = None) -> list[Prepared]:
    """Read and check the files of tasks.

    shots: examples in a prompt, for tasks that have some to show; None is each task's own.
    """
    for name, value, least in (("limit", limit, 1), ("shots", shots, 0)):
        if value is not None and value < least:
            raise UserError(f"--{name} {value} must be at least {least}; give more")
    for one in tasks:
        if one.generation is not None and one.generation.is_mathematics:
            mathematics.require()
        if one.generation is not None and one.generation.is_code:
            sandbox.require()
    made = []
    for one in tasks:
        count = one.shots if shots is None else shots
        made.append(Prepared(one, task.items(one, data, count, limit), count, manner))
    return made


@dataclass
class Asking:
    """A model that is asked, and who is told of it."""

    model: Model
    make_engine: Callable[[], Engine]
    encode: Encode
    """Ids of a prompt that is to be answered."""
    say: Callable[[str], None] = lambda sentence: None
    progress: Callable[[str, int, int], None] = lambda name, done, total: None
    """Told of each task's answered items and all of them."""
    context: int | None = None

    @cached_property
    def engine(self) -> Engine:
        """The engine, made when something is to be written."""
        return self.make_engine()

    @cached_property
    def scorer(self) -> Scorer:
        """The scorer of texts."""
        return Scorer(self.model, self.context)


def evaluate(prepared: Sequence[Prepared], asking: Asking, out: Path,
             identity: dict[str, Any], others: dict[str, Any]) -> list[Result]:
    """Ask a model all tasks, log every item in `out`, and write results.json there.

    identity: of the model; others: settings that all tasks share. Both are held against those that
    the folder's results were made with.
    """
    disk.make_folder(out, "name another --out")
    with disk.held(out, "wait for it, or name another --out"):
        journal.agree(out, identity, {one.task.name: one.settings(others) for one in prepared})
        found = [_one(one, asking, out) for one in prepared]
        path = out / "results.json"
        kept = disk.read_object(path, "remove it") if path.exists() else {}
        before = kept.get("tasks")
        tasks = dict(before) if isinstance(before, dict) else {}
        for one, own in zip(found, prepared, strict=True):
            tasks[one.task.name] = one.as_json() | {"settings": own.settings(others)}
        disk.write_json(path, {"model": identity, "tasks": tasks})
    return found


def _one(prepared: Prepared, asking: Asking, out: Path) -> Result:
    """Ask what is not answered yet of a task."""
    own, items = prepared.task, prepared.items
    log = Journal(out / f"{own.name}.jsonl", own, items)
    is_done = False
    try:
        left = [item for item in items if item.index not in log.records]
        asking.progress(own.name, len(items) - len(left), len(items))
        with contextlib.closing(_asked(prepared, left, asking)) as stream:
            for item, record in stream:
                log.add(item, record)
                asking.progress(own.name, len(log.records), len(items))
        is_done = True
    finally:
        log.close(is_done)
    found = results.of(own, items, log.records)
    if found.cut_items:
        asking.say(f"{own.name}: {found.cut_items:,} of {found.items:,} prompts were longer than "
                   f"the context and cut from the left, {found.cut_tokens:,} tokens in all")
    return found


def _asked(prepared: Prepared, left: list[Item],
           asking: Asking) -> Generator[tuple[Item, Record]]:
    """Ask what is left of a task."""
    own, words = prepared.task, asking.model.tokenizer
    if not left:
        return
    if own.kind != "generated":
        texts = scored.texts_of(own, prepared.items, words, asking.scorer.context)
        numbers = {item.index for item in left}
        yield from scored.ask(own, prepared.items, texts, numbers, asking.scorer)
        return
    context = asking.model.context if asking.context is None else asking.context
    fits = answers.prompts(own, left, asking.encode, prepared.manner, context)
    wanted = prepared.manner.max_new_tokens or own.generated.max_new_tokens
    if (room := max(one.max_new_tokens for one in fits)) < wanted:
        asking.say(f"{own.name}: answers have room for {room:,} tokens, not {wanted:,}, half of "
                   f"the context of {context:,}")
    yield from answers.ask(own, left, fits, asking.engine, words, prepared.manner)
