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
from dsjax.evaluate.requests import Fitted
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


Stream = Generator[tuple[Item, Record]]


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
        with contextlib.ExitStack() as stack:
            logs = [_log(one, out, stack) for one in prepared]
            opened = [_opened(one, log, asking)
                      for one, log in zip(prepared, logs, strict=True)]
            found = []
            for one, log, stream in zip(prepared, logs, opened, strict=True):
                found.append(_one(one, log, stream, asking))
                said = _keep(out / "results.json", identity, found[-1], one.settings(others))
                if said:
                    asking.say(said)
    return found


def _keep(path: Path, identity: dict[str, Any], found: Result,
          settings: dict[str, Any]) -> str | None:
    """Write a task's result beside those that are there; returns what a person should be told.

    A result of more items than this one gives way to it; their answers stay in the task's log.
    """
    kept = disk.read_object(path, "remove it") if path.exists() else {}
    before = kept.get("tasks")
    tasks = dict(before) if isinstance(before, dict) else {}
    own = tasks.get(found.task.name)
    had = own.get("items") if isinstance(own, dict) else None
    tasks[found.task.name] = found.as_json() | {"settings": settings}
    disk.write_json(path, {"model": identity, "tasks": tasks})
    if not isinstance(had, int) or had <= found.items:
        return None
    return (f"{found.task.name}: {path} had the result of {had:,} items and has that of "
            f"{found.items:,} now; the answers are kept, so that asking without --limit, or with "
            f"--limit {had}, makes it again at once")


def _log(prepared: Prepared, out: Path, stack: contextlib.ExitStack) -> Journal:
    """Open the log of a task until the stack is left."""
    log = Journal(out / f"{prepared.task.name}.jsonl", prepared.task, prepared.items)
    stack.callback(log.close, False)
    return log


def _one(prepared: Prepared, log: Journal, answered: Stream, asking: Asking) -> Result:
    """Ask what is not answered yet of a task."""
    own, items = prepared.task, prepared.items
    is_done = False
    try:
        asking.progress(own.name, len(log.records), len(items))
        with contextlib.closing(answered) as stream:
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


def _opened(prepared: Prepared, log: Journal, asking: Asking) -> Stream:
    """Answers of a task to come; what cannot be asked is refused now, before any of them."""
    own, words = prepared.task, asking.model.tokenizer
    left = [item for item in prepared.items if item.index not in log.records]
    if not left:
        return _nothing()
    if own.kind != "generated":
        texts = scored.texts_of(own, prepared.items, words, asking.scorer.context)
        numbers = {item.index for item in left}
        return scored.ask(own, prepared.items, texts, numbers, asking.scorer)
    context = asking.model.context if asking.context is None else asking.context
    fits = answers.prompts(own, left, asking.encode, prepared.manner, context)
    wanted = prepared.manner.max_new_tokens or own.generated.max_new_tokens
    if (room := max(one.max_new_tokens for one in fits)) < wanted:
        asking.say(f"{own.name}: answers have room for {room:,} tokens, not {wanted:,}, half of "
                   f"the context of {context:,}")
    return _written(prepared, left, fits, asking)


def _written(prepared: Prepared, left: list[Item], fits: list[Fitted], asking: Asking) -> Stream:
    """Answers by the engine, which is made with the first of them."""
    yield from answers.ask(prepared.task, left, fits, asking.engine, asking.model.tokenizer,
                           prepared.manner)


def _nothing() -> Stream:
    yield from ()
