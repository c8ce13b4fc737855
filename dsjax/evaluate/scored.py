"""Items whose answer is a likelihood: ranked choices, last words, whole texts."""

from __future__ import annotations

import math
from collections.abc import Collection, Generator, Sequence

from dsjax.data.tokenizers.tokenizer import Tokenizer
from dsjax.errors import UserError
from dsjax.evaluate import measures, requests
from dsjax.evaluate.journal import Record
from dsjax.evaluate.likelihood import Scorer, Scores, Text
from dsjax.evaluate.tasks.task import Item, Task, continuations


def ask(task: Task, items: Sequence[Item], texts: Sequence[Sequence[Text]], left: Collection[int],
        scorer: Scorer) -> Generator[tuple[Item, Record]]:
    """Yield each item that is left, with its record, when the last of its texts has been scored.

    texts: of each item, as `texts_of` makes them; left: numbers of the items. Batches are laid out
    for all of them, so that an item has its bits whichever others are left.
    """
    owners = [(n, k) for n, own in enumerate(texts) for k in range(len(own))]
    waiting: list[list[Scores | None]] = [[None] * len(own) for own in texts]
    wanted = {i for i, (n, _) in enumerate(owners) if items[n].index in left}
    for i, scores in scorer.stream([text for own in texts for text in own], wanted):
        n, k = owners[i]
        waiting[n][k] = scores
        there = [one for one in waiting[n] if one is not None]
        if len(there) == len(waiting[n]):
            waiting[n] = []
            yield items[n], _record(task, items[n], there)


def texts_of(task: Task, items: Sequence[Item], words: Tokenizer,
             context: int) -> list[list[Text]]:
    """Texts of each item; refuses what can never be scored within the context."""
    return [_texts(task, item, words, context) for item in items]


def _texts(task: Task, item: Item, words: Tokenizer, context: int) -> list[Text]:
    """Texts of an item, each of which fits the context but for what stands before it."""
    if task.kind == "rolling":
        found = requests.windows(words, item.question.target, context)
    else:
        found = [requests.pair(words, item.prompt, one)
                 for one in continuations(task, item.question)]
    for text in found:
        if not text.continuation:
            raise UserError(f"item {item.name} of {task.name} asks for text that has no token of "
                            "its own after the prompt; take its line out")
        if len(text.continuation) > context:
            raise UserError(f"item {item.name} of {task.name} asks for {len(text.continuation):,} "
                            f"tokens, and the context is {context:,}; raise --context, or take its "
                            "line out")
    if not found:
        raise UserError(f"item {item.name} of {task.name} has no tokens; take its line out")
    return found


def _record(task: Task, item: Item, scores: list[Scores]) -> Record:
    """Make what is logged of an item."""
    if not all(math.isfinite(one.total) for one in scores):
        raise UserError(f"the model's scores of item {item.name} of {task.name} are not numbers; "
                        "its parameters hold NaN or are too large: look at the loss of its "
                        "training, or use an earlier checkpoint")
    if task.kind == "rolling":
        text = item.question.target
        return {"logprob": sum(one.total for one in scores),
                "tokens": sum(len(one.logprobs) for one in scores),
                "words": measures.words(text), "bytes": len(text.encode())}
    cut = {"cut": max(one.cut for one in scores)}
    if task.kind == "likelihood":
        (one,) = scores
        return {"logprob": one.total, "is_greedy": one.is_all_greedy,
                "measures": {"acc": float(one.is_all_greedy)}, **cut}
    found = measures.ranked(scores, item.question.choices, item.question.gold)
    return {"logprobs": [one.total for one in scores],
            "is_greedy": [one.is_all_greedy for one in scores], "gold": item.question.gold,
            "measures": {name: found[name] for name in task.metrics}, **cut}
