"""A task: questions made of a file's rows, prompts with examples, and verdicts on answers.

Four kinds. `ranked`: the likeliest of several continuations is the model's answer. `likelihood`:
one continuation, and whether it is the greedy one. `rolling`: a whole text. `generated`: a text
that the model writes, which is graded.

A prompt is composed as lm-evaluation-harness 0.4.13 composes it (`ConfigurableTask.fewshot_context`
in lm_eval/api/task.py): description, examples, question,

    description + sum_i (question_i + delimiter + answer_i + "\\n\\n") + question,

and a continuation is delimiter + choice. Examples are drawn as its samplers draw them (`default`:
`random.Random(1234)`, on from one question to the next; `first_n`: from the start).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from dsjax.errors import UserError
from dsjax.evaluate.tasks import rows
from dsjax.evaluate.tasks.rows import Row, Split

HARNESS = "lm-evaluation-harness 0.4.13"
SEED = 1234  # of the harness's examples
Kind = Literal["ranked", "likelihood", "rolling", "generated"]


@dataclass(frozen=True)
class Question:
    """A row as it is asked."""

    id: str
    text: str
    """The prompt, without examples."""
    target: str
    """The answer as an example shows it; the continuation of a `likelihood`."""
    choices: tuple[str, ...] = ()
    gold: int = 0
    """Number of the right choice."""
    group: str = ""
    """Part of the task that it belongs to."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Facts that a verdict on an answer needs."""


class Verdict(NamedTuple):
    """Judgment of an answer by one metric."""

    is_right: bool
    answer: str
    """Reading of the text, in a form in which equal answers are equal: votes are counted
    by it; empty where answers have no such form, as code."""


Grade = Callable[[Question, str], dict[str, Verdict]]
"""A question and the text that a model wrote -> verdicts by metric."""


@dataclass(frozen=True)
class Generation:
    """Limits of the texts that a task asks for, and the verdict on them."""

    grade: Grade
    stop: tuple[str, ...]
    """Texts that end an answer; they are not part of it."""
    max_new_tokens: int = 256
    """Of lm-evaluation-harness's models, where a task names none."""
    is_code: bool = False
    """Answers are run."""
    is_mathematics: bool = False
    """Answers are compared by math-verify."""


@dataclass(frozen=True)
class Task:
    """Everything that a task file says."""

    name: str
    source: str
    """The protocol and its version."""
    kind: Kind
    metrics: tuple[str, ...]
    question: Callable[[Row], Question]
    test: Split
    is_asked: Callable[[Row], bool] = lambda row: True
    """Rows of the test file that belong to the task."""
    shots: int = 0
    examples: Split | None = None
    """The file of examples; None where the task has none to show."""
    is_example: Callable[[Row], bool] = lambda row: True
    sampler: Literal["random", "first"] = "random"
    delimiter: str = " "
    description: Callable[[Question], str] = lambda question: ""
    parent: Callable[[str], str] | None = None
    """The part of the task that its groups belong to."""
    generation: Generation | None = None

    @property
    def generated(self) -> Generation:
        """The generation of a task that has one."""
        assert self.generation is not None, f"{self.name} generates nothing"
        return self.generation


@dataclass(frozen=True)
class Item:
    """A question with its whole prompt."""

    index: int
    """Its place in the whole task, from 0."""
    question: Question
    prompt: str

    @property
    def name(self) -> str:
        """Name in logs and refusals."""
        return f"{self.index} ({self.question.id})"


def items(task: Task, data: Path, shots: int | None = None, limit: int | None = None) -> list[Item]:
    """Read and check a task's files, and compose its prompts.

    limit: of each group, as the harness limits the subjects of MMLU apart.
    """
    shots = task.shots if shots is None else shots
    path = rows.find(data, task.name, task.test)
    asked = [task.question(row) for row in rows.read(path) if task.is_asked(row)]
    if not asked:
        raise UserError(f"{path} holds rows, but none that {task.name} asks ({task.source}); give "
                        "the public file")
    shown = _examples(task, data, shots)
    made: list[Item] = []
    counts = dict.fromkeys((one.group for one in asked), 0)
    for i, (question, examples) in enumerate(zip(asked, shown(asked), strict=True)):
        counts[question.group] += 1
        if limit is None or counts[question.group] <= limit:
            made.append(Item(i, question, prompt(task, question, examples)))
    return made


def prompt(task: Task, question: Question, examples: Sequence[Question]) -> str:
    """A question's prompt with examples before it."""
    shown = (f"{one.text}{task.delimiter}{one.target}\n\n" for one in examples)
    return "".join([task.description(question), *shown, question.text])


def continuations(task: Task, question: Question) -> tuple[str, ...]:
    """Texts whose likelihood is asked for."""
    if task.kind == "ranked":
        return tuple(task.delimiter + choice for choice in question.choices)
    return (question.target,)


def chance(task: Task, questions: Sequence[Question]) -> float:
    """The mean share of right answers by guessing; 0 where there is nothing to choose from."""
    if task.kind != "ranked":
        return 0.0
    return sum(1 / len(question.choices) for question in questions) / len(questions)


def _examples(task: Task, data: Path, shots: int) -> Callable[
        [Sequence[Question]], list[list[Question]]]:
    """A function of all questions: the examples that each is shown."""
    if not shots:
        return lambda asked: [[] for _ in asked]
    if task.examples is None:
        raise UserError(f"--shots {shots}: {task.name} has no examples to show beside the "
                        "questions themselves; use --shots 0 for it")
    try:
        path = rows.find(data, task.name, task.examples)
    except UserError as error:
        raise UserError(f"{error}; --shots 0 asks without examples") from None
    pool = [task.question(row) for row in rows.read(path) if task.is_example(row)]
    if task.sampler == "random":
        _enough(task, path, len(pool), shots)
        draw = random.Random(SEED)
        return lambda asked: [[pool[i] for i in draw.sample(range(len(pool)), shots)]
                              for _ in asked]
    by_group: dict[str, list[Question]] = {}
    for one in pool:
        by_group.setdefault(one.group, []).append(one)

    def first(asked: Sequence[Question]) -> list[list[Question]]:
        for group in dict.fromkeys(one.group for one in asked):
            _enough(task, path, len(by_group.get(group, ())), shots, group)
        return [by_group[one.group][:shots] for one in asked]

    return first


def _enough(task: Task, path: Path, there: int, shots: int, group: str = "") -> None:
    if shots > there:
        of = f" of {group}" if group else ""
        raise UserError(f"{path} has {there} examples{of}, and {task.name} is to show {shots}; use "
                        f"--shots {there}, or give the whole public file")
