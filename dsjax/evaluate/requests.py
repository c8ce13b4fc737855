"""Texts as a model is asked for them: ids of a context and what follows, within its positions.

As lm-evaluation-harness 0.4.13 does it (`TemplateLM` in lm_eval/api/model.py, `HFLM` in
lm_eval/models/huggingface.py): blanks at the end of a context belong to what follows; the two are
encoded together and cut where the context alone would end; an empty context is the begin token, or
the end token of a tokenizer without one. What has no room is cut from the left.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from dsjax.data.tokenizers.tokenizer import Tokenizer
from dsjax.errors import UserError
from dsjax.evaluate.likelihood import Text


def prefix(words: Tokenizer) -> int:
    """The token that stands before a text that has nothing before it."""
    return words.end_id if words.begin_id is None else words.begin_id


def pair(words: Tokenizer, context: str, continuation: str) -> Text:
    """Ids of a context and of what follows it."""
    if not context:
        ids = words.prompt(continuation, is_begun=False)
        if ids and ids[0] == prefix(words):
            return Text(tuple(ids[:1]), tuple(ids[1:]))
        return Text((prefix(words),), tuple(ids))
    kept = context.rstrip()
    whole = words.prompt(context + continuation)
    before = words.prompt(kept)
    return Text(tuple(whole[: len(before)]), tuple(whole[len(before) :]))


def windows(words: Tokenizer, text: str, context: int) -> list[Text]:
    """A whole text in windows of at most `context` positions; every token is scored once.

    Each window but the first begins with the last token of the one before; the last one reads as
    much of the text before it as it has room for.
    """
    ids = words.prompt(text)
    first = min(context, len(ids))
    made = [Text((prefix(words),), tuple(ids[:first]))] if ids else []
    done = first
    while done < len(ids):
        new = min(len(ids) - done, context)
        end = done + new
        start = end - context - 1
        made.append(Text(tuple(ids[start:done]), tuple(ids[done:end])))
        done = end
    return made


class Fitted(NamedTuple):
    """A prompt within the context."""

    ids: list[int]
    max_new_tokens: int
    cut: int
    """Tokens that were left out, from the left."""


def fitted(ids: Sequence[int], max_new_tokens: int, context: int) -> Fitted:
    """Give a prompt and its answer room in the context.

    An answer may take half of the context at most, and the prompt what is left.
    """
    if context < 2:
        raise UserError(f"--context {context} has no room for a prompt and a new token; it must be "
                        "at least 2")
    new = min(max_new_tokens, max(context // 2, 1))
    kept = list(ids[-(context - new) :])
    return Fitted(kept, new, len(ids) - len(kept))
