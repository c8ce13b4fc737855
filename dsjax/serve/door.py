"""From a typed request to requests of the engine: ids, limits, seeds, and the text to come."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from dsjax.errors import QueueFullError, UserError
from dsjax.infer.sample import Sampling
from dsjax.serve.answers import ChatForm, CompletionForm, Form
from dsjax.serve.choice import Mailbox, Request
from dsjax.serve.metrics import Metrics
from dsjax.serve.protocol import Engine, Model
from dsjax.serve.refusal import Refusal, busy, quoted
from dsjax.serve.schema import Asked, Chat, Completion
from dsjax.serve.template import ChatTemplate
from dsjax.serve.text import Growing, Thoughts, Vocabulary

T = TypeVar("T")
COMPLETION_TOKENS = 16
"""New tokens of a completion that asks for no number, as in OpenAI's API."""
QUICK = 2000
"""Characters that are turned into ids at once; longer texts do not hold up the other clients."""


@dataclass(frozen=True)
class Limits:
    """The most that one request may ask for; None is what the model's context has room for."""

    body: int = 4 << 20
    prompt_tokens: int | None = None
    new_tokens: int | None = None


@dataclass(frozen=True)
class Served:
    """The model that is served, its users and its limits."""

    model: Model
    """The model that the engine runs."""
    name: str
    """The model as clients name it."""
    template: ChatTemplate | None = None
    limits: Limits = field(default_factory=Limits)
    keys: tuple[str, ...] = ()
    """Clients send one of them; none is asked for if there is none."""


class Door:
    """An engine, and the requests of its clients; made on the loop that answers."""

    def __init__(self, engine: Engine, served: Served) -> None:
        self.engine, self._model = engine, served.model
        self.name, self.template, self.limits = served.name, served.template, served.limits
        self.vocabulary = Vocabulary(served.model.tokenizer)
        self.metrics = Metrics(engine)
        self.active: set[Request] = set()
        """Requests whose client has not got all of its answer."""
        self.is_closing = False
        """New requests are refused; those that run are finished."""
        self.failure: BaseException | None = None
        """It ended the engine."""
        self.drop: Callable[[object], None] = lambda address: None
        """Cuts the connection of a client's address without waiting for it to read."""
        self._mailbox = Mailbox(asyncio.get_running_loop())

    async def complete(self, asked: Completion) -> tuple[Request, Form]:
        """Queue a completion's prompts."""
        self._check(asked.asked)
        prompts = [await self._ids(prompt) for prompt in asked.prompts]
        form = CompletionForm(self.name, self.vocabulary, asked.asked.top_logprobs is not None,
                              asked.asked.with_usage)
        return self._queue(prompts, asked.asked, COMPLETION_TOKENS, lambda: None), form

    async def chat(self, asked: Chat) -> tuple[Request, Form]:
        """Queue a conversation."""
        self._check(asked.asked)
        template = self.template
        if template is None:
            raise Refusal(f"the model {self.name} has no chat template; use /v1/completions",
                          "messages", "no_chat_template")
        size = sum(len(message["content"]) for message in asked.messages)
        prompt = await self._aside(
            size, lambda: template.prompt(asked.messages, asked.template_kwargs))
        form = ChatForm(self.name, self.vocabulary, asked.asked.top_logprobs is not None,
                        asked.asked.with_usage)

        def thoughts() -> Thoughts | None:
            return Thoughts(prompt.is_thinking) if template.has_thoughts else None

        return self._queue([prompt.ids], asked.asked, None, thoughts), form

    def fail(self, failure: BaseException) -> None:
        """End every request: the engine has stopped."""
        self.failure = failure
        for request in list(self.active):
            for choice in request.choices:
                choice.fail("the engine stopped; the server's log says why")

    def end(self, request: Request) -> None:
        """Drop what a request has not got, and count it."""
        request.close()
        if request in self.active:
            self.active.remove(request)
            self.metrics.observe(request)

    def _check(self, asked: Asked) -> None:
        if asked.model != self.name:
            raise Refusal(f"The model {quoted(asked.model)} does not exist; this server has "
                          f"{self.name}", "model", "model_not_found", 404)

    async def _ids(self, prompt: str | tuple[int, ...]) -> list[int]:
        """Ids of a prompt; an empty text is the end of the text before."""
        tokenizer = self._model.tokenizer
        if isinstance(prompt, str):
            text = prompt
            return await self._aside(
                len(text), lambda: tokenizer.prompt(text)) or [tokenizer.end_id]
        vocab = self._model.cfg.vocab
        if not 0 <= min(prompt) <= max(prompt) < vocab:
            wrong = next(i for i in prompt if not 0 <= i < vocab)
            raise Refusal(f"prompt has the id {quoted(wrong)}; the model knows 0 to {vocab - 1}",
                          "prompt")
        return list(prompt)

    async def _aside(self, size: int, make: Callable[[], T]) -> T:
        """Call `make` for a text of so many characters; for a long one on another thread."""
        most = self.engine.max_len * self.vocabulary.longest
        if size > most:
            raise self._too_long(f"{size:,} characters, which are more than "
                                 f"{self.engine.max_len:,} tokens")
        try:
            return make() if size <= QUICK else await asyncio.to_thread(make)
        except UserError as error:
            raise Refusal(f"{error}") from None

    def _queue(self, prompts: Sequence[Sequence[int]], asked: Asked, default_tokens: int | None,
               thoughts: Callable[[], Thoughts | None]) -> Request:
        """Queue every prompt n times, or none at all."""
        most = [self._most_tokens(len(prompt), asked, default_tokens) for prompt in prompts]
        request = Request(self.engine, self._mailbox, asked.is_streamed)
        try:
            for prompt, max_tokens in zip(prompts, most, strict=True):
                growing = [Growing(self.vocabulary, asked.stop, thoughts(),
                                   asked.top_logprobs is not None) for _ in range(asked.n)]
                request.add(prompt, self._samplings(asked, max_tokens), growing,
                            asked.top_logprobs or 0)
        except QueueFullError as error:
            request.close()
            raise busy(f"{error}") from None
        except UserError as error:
            request.close()
            raise Refusal(f"{error}") from None
        except BaseException:
            request.close()
            raise
        self.active.add(request)
        return request

    def _most_tokens(self, prompt: int, asked: Asked, default: int | None) -> int:
        """New tokens at most; refuses a prompt or a wish beyond the limits."""
        limits, room = self.limits, self.engine.max_len - prompt
        if limits.prompt_tokens is not None and prompt > limits.prompt_tokens:
            raise self._too_long(f"{prompt:,} tokens, and this server takes "
                                 f"{limits.prompt_tokens:,}")
        if room < 1:
            raise self._too_long(f"{prompt:,} tokens")
        wanted = asked.max_tokens
        if wanted is None:
            return min(room, default or room, limits.new_tokens or room)
        if limits.new_tokens is not None and wanted > limits.new_tokens:
            raise Refusal(f"max_tokens is {wanted:,}, and this server gives at most "
                          f"{limits.new_tokens:,}; ask for fewer", "max_tokens")
        if wanted > room:
            raise Refusal(
                f"This model's maximum context length is {self.engine.max_len} tokens. However, "
                f"you requested {prompt + wanted} tokens ({prompt} in the prompt, {wanted} in the "
                "answer); shorten the prompt or lower max_tokens", "max_tokens",
                "context_length_exceeded")
        return wanted

    def _too_long(self, size: str) -> Refusal:
        return Refusal(f"This model's maximum context length is {self.engine.max_len} tokens. "
                       f"However, your prompt has {size}; shorten it", "prompt",
                       "context_length_exceeded")

    def _samplings(self, asked: Asked, max_tokens: int) -> list[Sampling]:
        """One for each of n answers, each with a seed of its own."""
        tokenizer, chosen = self._model.tokenizer, dict(asked.sampling)
        given = chosen.pop("seed", None)
        return [Sampling(max_new_tokens=max_tokens, vocab=tokenizer.vocab,
                         stop_ids=() if asked.ignores_end else tokenizer.end_ids,
                         seed=seed(given, i), **chosen) for i in range(asked.n)]


def seed(given: int | None, i: int) -> int:
    """The seed of answer i: drawn if none was given; the first answer's is the one given."""
    if given is None:
        return secrets.randbits(63)
    base = given % 2**63
    if i == 0:
        return base
    return int.from_bytes(hashlib.sha256(f"{base} {i}".encode()).digest()[:8], "big") >> 1
