"""Problems of a file: lines of JSON in GSM8K's form, MATH's, or with prompt and answer.

A question is put into a template and becomes the prompt; the answer is what a rule compares with:
behind GSM8K's last "####", in MATH's last box. A file is read whole and refused by line before any
work. Training goes through its questions in a new order each epoch; a tenth is held out by a hash
of the question, so that equal questions share a split, unless another file is the exam.
"""

from __future__ import annotations

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
    if "problem" in row or "solution" in row:
        question, worked = row.text("problem"), row.text("solution")
        answer = mathematics.boxed(worked) or (row.text("answer") if "answer" in row else None)
        where = "\\boxed answer in field 'solution', and no 'answer'"
    elif "prompt" in row:
        question, worked = row.text("prompt"), row.text("solution") if "solution" in row else ""
        answer, where = row.text("answer"), "answer"
    else:
        question, worked = row.text("question"), row.text("answer")
        answer = mathematics.marked_number(worked)
        where = "number behind '#### ' in field 'answer'"
    if answer is None or not answer.strip():
        raise UserError(f"{row.where} has no {where}, so that no output could be right; mend the "
                        "line or take it out")
    return Problem(prompt=template.format(question=question), trace=worked, answer=answer.strip(),
                   key=(" ".join(question.split()).lower(),), reference=answer.strip())
