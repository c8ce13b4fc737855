"""OpenAI's objects: completions and chats, whole and in chunks.

Log-probabilities are of the model's distribution before temperature. One that is not finite is
written as -9999, as OpenAI does: JSON has no infinities.
"""

from __future__ import annotations

import abc
import json
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dsjax.serve.choice import Choice, Request
from dsjax.serve.text import Delta, Scored, Vocabulary

LEAST_LOGPROB = -9999.0
DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"


def dumps(data: Any) -> bytes:
    """JSON in ASCII, so that no reader takes a rare line separator for the end of a line."""
    return json.dumps(data, allow_nan=False, separators=(",", ":")).encode()


def event(data: Any) -> bytes:
    """A server-sent event."""
    return b"data: " + dumps(data) + b"\n\n"


@dataclass(frozen=True)
class Form(abc.ABC):
    """Common part of the two kinds of answers."""

    model: str
    vocabulary: Vocabulary
    has_logprobs: bool
    with_usage: bool
    """Every chunk of a stream has a usage, null but in the last."""
    prefix, whole_kind, chunk_kind = "", "", ""  # of the kinds below
    created: int = field(default_factory=lambda: int(time.time()))
    id: str = field(default_factory=lambda: secrets.token_hex(12))

    def whole(self, request: Request) -> dict[str, Any]:
        """The answer to a request that is not streamed."""
        choices = [self.choice(choice, choice.growing.take()) for choice in request.choices]
        return {**self._head(self.whole_kind), "choices": choices, "usage": usage(request)}

    def opening(self, request: Request) -> list[dict[str, Any]]:
        """Chunks before any token."""
        return []

    @abc.abstractmethod
    def chunks(self, choice: Choice, piece: Delta) -> list[dict[str, Any]]:
        """Chunks of one choice's news."""

    def closing(self, request: Request) -> list[dict[str, Any]]:
        """Chunks after every choice has ended."""
        if not self.with_usage:
            return []
        return [{**self._head(self.chunk_kind), "choices": [], "usage": usage(request)}]

    @abc.abstractmethod
    def choice(self, choice: Choice, piece: Delta) -> dict[str, Any]:
        """A choice of a whole answer."""

    def chunk(self, choice: Mapping[str, Any]) -> dict[str, Any]:
        """A chunk with one choice."""
        of_usage = {"usage": None} if self.with_usage else {}
        return {**self._head(self.chunk_kind), "choices": [choice], **of_usage}

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": f"{self.prefix}{self.id}", "object": kind, "created": self.created,
                "model": self.model}


class CompletionForm(Form):
    """Answers of /v1/completions."""

    prefix, whole_kind, chunk_kind = "cmpl-", "text_completion", "text_completion"

    def chunks(self, choice: Choice, piece: Delta) -> list[dict[str, Any]]:
        """One chunk, which may also say how the choice ended."""
        return [self.chunk(self.choice(choice, piece))]

    def choice(self, choice: Choice, piece: Delta) -> dict[str, Any]:
        """A piece of a choice, or all of it."""
        return {"index": choice.index, "text": piece.content, "finish_reason": choice.finish,
                "logprobs": self._logprobs(piece.scored) if self.has_logprobs else None}

    def _logprobs(self, scored: Sequence[Scored]) -> dict[str, Any]:
        """The older form: parallel lists; a token's own stands among its rivals."""
        name = self.vocabulary.name
        tops = [{name(i): finite(logprob) for i, logprob in (*one.top, (one.token, one.logprob))}
                for one in scored]
        return {
            "tokens": [name(one.token) for one in scored],
            "token_logprobs": [finite(one.logprob) for one in scored],
            "top_logprobs": tops,
            "text_offset": [one.start for one in scored],
        }


class ChatForm(Form):
    """Answers of /v1/chat/completions; thoughts are `reasoning_content`, as in DeepSeek's API."""

    prefix, whole_kind, chunk_kind = "chatcmpl-", "chat.completion", "chat.completion.chunk"

    def opening(self, request: Request) -> list[dict[str, Any]]:
        """The role, once a choice."""
        first = {"role": "assistant", "content": ""}
        return [self.chunk(_part(choice, first, None)) for choice in request.choices]

    def chunks(self, choice: Choice, piece: Delta) -> list[dict[str, Any]]:
        """Chunks of thoughts and of the answer, and one that says how the choice ended."""
        logprobs = self._logprobs(piece.scored) if self.has_logprobs and piece.scored else None
        deltas = [{name: text} for name, text in (("reasoning_content", piece.reasoning),
                                                  ("content", piece.content)) if text]
        if logprobs is not None and not deltas:
            deltas = [{"content": ""}]
        made = [_part(choice, delta, None) for delta in deltas]
        if made and logprobs is not None:
            made[0]["logprobs"] = logprobs
        if choice.finish is not None:
            made.append(_part(choice, {}, choice.finish))
        return [self.chunk(one) for one in made]

    def choice(self, choice: Choice, piece: Delta) -> dict[str, Any]:
        """A message that is whole."""
        message = {"role": "assistant", "content": piece.content, "refusal": None}
        if piece.reasoning:
            message["reasoning_content"] = piece.reasoning
        return {"index": choice.index, "message": message, "finish_reason": choice.finish,
                "logprobs": self._logprobs(piece.scored) if self.has_logprobs else None}

    def _logprobs(self, scored: Sequence[Scored]) -> dict[str, Any]:
        def of(token: int, logprob: float) -> dict[str, Any]:
            spelled = self.vocabulary.bytes_of(token)
            return {"token": self.vocabulary.name(token), "logprob": finite(logprob),
                    "bytes": None if spelled is None else list(spelled)}

        content = [{**of(one.token, one.logprob), "top_logprobs": [of(*top) for top in one.top]}
                   for one in scored]
        return {"content": content, "refusal": None}


def usage(request: Request) -> dict[str, int]:
    """Tokens of a request; a prompt of several choices counts once."""
    prompt, made = request.prompt_tokens, request.tokens
    return {"prompt_tokens": prompt, "completion_tokens": made, "total_tokens": prompt + made}


def finite(logprob: float) -> float:
    """A log-probability that JSON can hold."""
    return logprob if logprob > LEAST_LOGPROB else LEAST_LOGPROB


def _part(choice: Choice, delta: Mapping[str, str], finish: str | None) -> dict[str, Any]:
    return {"index": choice.index, "delta": dict(delta), "logprobs": None, "finish_reason": finish}
