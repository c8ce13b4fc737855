"""Problems of a file: lines of JSON in GSM8K's form, MATH's, or with prompt and answer.

A question is put into a template and becomes the prompt; the answer is what a rule compares with:
behind GSM8K's last "####", in MATH's last box. With prompt and answer, an answer of null marks a
question that no rule judges, for a preference model. A file is read whole and refused by line
before any work. Training goes through its questions in a new order each epoch; a tenth is held out
by a hash of the question, so that equal questions share a split, unless another file is the exam.
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import numpy as np

from dsjax.config.fields import did_you_mean
from dsjax.errors import UserError
from dsjax.evaluate.grade import mathematics
from dsjax.evaluate.tasks import rows
from dsjax.evaluate.tasks.rows import Row
from dsjax.rl.tasks.task import Problem, Split, Task

TEMPLATES = {
    "plain": "{question}",
    "question": "Question: {question}\nAnswer:",
    "boxed": "{question}\nPlease reason step by step, and put your final answer within \\boxed{{}}."
             "\n",
    "r1_zero": "A conversation between User and Assistant. The User asks a question and the "
               "Assistant solves it: first it thinks in <think> ... </think>, then it answers in "
               "<answer> ... </answer>.\nUser: {question}\nAssistant:",
}
"""Prompts around a question: none, lm-evaluation-harness's for GSM8K, DeepSeek's for a box (R1's
README), and one that asks for the tags of R1-Zero (R1 report, table 1; in words of our own)."""
LEVELS = range(1, 2**31)
"""A file has one difficulty, its own; any level will do."""


def is_file(name: str) -> bool:
    """True if the name of a task is that of a file."""
    return name.endswith(rows.ENDINGS)


@functools.lru_cache(maxsize=4)
def read(path: str, template: str, split: Split | None = None) -> Task:
    """Make a task of a file's problems, all of one split where it is given.

    Raises:
        UserError: no such file or template, a line without question or answer, or of another kind.
    """
    if template not in TEMPLATES:
        raise UserError(f"there is no template {template[:60]!r}{did_you_mean(template, TEMPLATES)}"
                        f"; choose from {', '.join(TEMPLATES)}")
    if not Path(path).is_file():
        raise UserError(f"there is no file {path} of problems; name a JSONL file, or a task of "
                        "dsjax.rl.tasks")
    found = tuple(_problem(row, TEMPLATES[template]) for row in rows.read(Path(path)))

    def draw(rng: np.random.Generator, level: int) -> Problem:
        return found[rng.integers(len(found))]

    return Task(name=Path(path).name, source=path, levels=LEVELS, draw=draw, rule="math",
                rows=found, split=split)


def _problem(row: Row, template: str) -> Problem:
    """A row's question, worked solution and answer."""
    if "problem" in row or ("solution" in row and "prompt" not in row):
        question, worked = row.text("problem"), row.text("solution")
        answer = mathematics.boxed(worked) or (row.text("answer") if "answer" in row else None)
        where = "\\boxed answer in field 'solution', and no 'answer'"
    elif "prompt" in row:
        question, worked = row.text("prompt"), row.text("solution") if "solution" in row else ""
        is_open = "answer" in row.fields and "answer" not in row  # null, as no rule judges it
        answer, where = None if is_open else row.text("answer"), "answer"
        if is_open:
            return _made(template, question, worked, "")
    else:
        question, worked = row.text("question"), row.text("answer")
        answer = mathematics.marked_number(worked)
        where = "number behind '#### ' in field 'answer'"
    if answer is None or not answer.strip():
        raise UserError(f"{row.where} has no {where}, so that no output could be right; mend the "
                        "line or take it out")
    return _made(template, question, worked, answer.strip())


def _made(template: str, question: str, worked: str, answer: str) -> Problem:
    return Problem(prompt=template.format(question=question), trace=worked, answer=answer,
                   key=(" ".join(question.split()).lower(),), reference=answer)


def judged_by_rules(task: Task) -> Task:
    """The same task without questions that have no answer, as exams have it.

    Raises:
        UserError: there is no other question.
    """
    kept = tuple(one for one in task.rows if one.reference)
    if len(kept) == len(task.rows):
        return task
    if not kept:
        raise UserError(f"no question of {task.source} has an answer, and an exam counts right "
                        "ones; name another file for it by --rl.exam")

    def draw(rng: np.random.Generator, level: int) -> Problem:
        return kept[rng.integers(len(kept))]

    return dataclasses.replace(task, rows=kept, draw=draw)
