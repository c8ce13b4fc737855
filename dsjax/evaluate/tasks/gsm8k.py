"""GSM8K: school mathematics, answered step by step and graded by the last number.

lm-evaluation-harness 0.4.13, lm_eval/tasks/gsm8k/gsm8k.yaml, version 3.0: five examples of the
training split. `strict-match` reads the number after "#### ", `flexible-extract` the last number of
the text; both are compared with the answer's after commas, dollar signs, reasoning and a last full
stop are taken out, in lower case.
"""

import re

from dsjax.errors import UserError
from dsjax.evaluate.grade import mathematics
from dsjax.evaluate.tasks.rows import Row, Split
from dsjax.evaluate.tasks.task import HARNESS, Generation, Question, Task, Verdict

IGNORED = (re.compile(","), re.compile(r"\$"), re.compile(r"(?s).*#### "), re.compile(r"\.$"))
NONE = "[invalid]"
FROM = "github.com/openai/grade-school-math (or openai/gsm8k on the Hugging Face hub)"


def question(row: Row) -> Question:
    """A row of `question` and `answer`."""
    asked, answer = row.any_text("question"), row.text("answer")
    if not _plain(answer).strip() or answer.rstrip().endswith("####"):
        raise UserError(f"{row.where} has nothing behind the last #### of field 'answer', so that "
                        "no text could be right; give the number")
    return Question(row.name(), f"Question: {asked}\nAnswer:", answer)


def grade(question: Question, text: str) -> dict[str, Verdict]:
    """Compare the number that a text gives with the answer's, read in both ways."""
    gold = _plain(question.target)
    read = {"exact_match,strict-match": mathematics.marked_number(text),
            "exact_match,flexible-extract": mathematics.last_number(text)}
    plain = {name: _plain(number or NONE) for name, number in read.items()}
    return {name: Verdict(answer == gold, answer) for name, answer in plain.items()}


def _plain(text: str) -> str:
    for pattern in IGNORED:
        text = pattern.sub("", text)
    return text.lower()


TASK = Task(
    name="gsm8k",
    source=f"{HARNESS}, gsm8k, version 3.0",
    kind="generated",
    metrics=("exact_match,strict-match", "exact_match,flexible-extract"),
    question=question,
    test=Split(("gsm8k-test", "gsm8k_test", "gsm8k/test", "gsm8k/main/test-00000-of-00001"), FROM),
    shots=5,
    examples=Split(
        ("gsm8k-train", "gsm8k_train", "gsm8k/train", "gsm8k/main/train-00000-of-00001"), FROM),
    generation=Generation(grade, ("Question:", "</s>", "<|im_end|>")),
)
