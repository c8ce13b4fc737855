"""Text: what a folder's own text costs, whole documents one after the other.

The request is lm-evaluation-harness 0.4.13's `loglikelihood_rolling` (`get_rolling_token_windows`
in lm_eval/utils.py, with one token of context): windows as long as the context that overlap in no
target, so that every token counts once. The metrics are those of its wikitext.yaml:

    word_perplexity = exp(-sum log p / words),  byte_perplexity = exp(-sum log p / bytes),
    bits_per_byte = -sum log p / bytes / log 2,

where words are what blanks separate. The text is taken as it is: no detokenizer.
"""

from dsjax.evaluate.tasks.rows import Row, Split
from dsjax.evaluate.tasks.task import HARNESS, Question, Task


def question(row: Row) -> Question:
    """A row of `text`."""
    return Question(row.name("id"), "", row.text("text"))


TASK = Task(
    name="text",
    source=f"{HARNESS}, loglikelihood_rolling with the metrics of wikitext, version 2.0",
    kind="rolling",
    metrics=("word_perplexity", "byte_perplexity", "bits_per_byte"),
    question=question,
    test=Split(("text", "text-test", "text/test"), "you: one document a line, in the field 'text'"),
)
