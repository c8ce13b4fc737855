"""Conversations as the harness wants them: one text, by the checkpoint's own template.

Names of special tokens in a question are special to the model, as they are to every model that the
harness drives: it hands texts on, not ids.
"""

from __future__ import annotations

from collections.abc import Sequence

from dsjax.errors import UserError, say
from dsjax.serve.refusal import Refusal
from dsjax.serve.template import ChatTemplate

Messages = Sequence[dict[str, str]]


def render(template: ChatTemplate, messages: Messages, is_asked: bool) -> str:
    """Render a conversation up to where the assistant speaks, or to the end of its last words.

    A template that takes no system message is asked again without it, and that is said.
    """
    try:
        return _text(template, messages, is_asked)
    except Refusal as refusal:
        others = [one for one in messages if one["role"] != "system"]
        if len(others) == len(messages):
            raise UserError(refusal.message) from None
    say("dsjax: the chat template takes no system message, so it is left out")
    try:
        return _text(template, others, is_asked)
    except Refusal as refusal:
        raise UserError(refusal.message) from None


def _text(template: ChatTemplate, messages: Messages, is_asked: bool) -> str:
    text = template.render(messages, {}, is_asked=is_asked)
    if is_asked:
        return text
    last = messages[-1]["content"].strip()
    at = text.rfind(last)
    if at < 0:
        raise UserError(f"the chat template does not repeat the last message {last[:60]!r}, so "
                        "that nothing can go on from it; leave gen_prefix out of the task")
    return text[: at + len(last)]
