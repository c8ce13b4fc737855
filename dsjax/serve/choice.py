"""The answers of one request as they grow: from the engine's thread to the loop, bounded.

The engine's thread only appends to a `Mailbox` and wakes the loop at most once a step. On the loop
tokens become text at once, however slowly the client reads, so that stop strings end the work in
time. What a slow reader has not taken is merged; one that falls too far behind is let go.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Sequence

from dsjax.infer.sample import Sampling
from dsjax.serve.protocol import Engine, Finish, Output
from dsjax.serve.refusal import Refusal
from dsjax.serve.text import Delta, Growing

MOST_UNREAD = 4096
"""Tokens that an answer may be ahead of its reader."""

log = logging.getLogger(__name__)


class Mailbox:
    """Outputs on their way from the engine's thread to the loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: deque[tuple[Choice, Output]] = deque()
        self._is_called = False

    def post(self, choice: Choice, output: Output) -> None:
        """Hand over an output; called by the engine's thread, and never blocks it."""
        self._waiting.append((choice, output))
        if not self._is_called:
            self._is_called = True
            with contextlib.suppress(RuntimeError):  # the loop has ended, and all readers with it
                self._loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        self._is_called = False  # before the first is taken: none is left lying
        while self._waiting:
            choice, output = self._waiting.popleft()
            try:
                choice.take(output)
            except Exception:  # one request's fault must not stop the others' letters
                log.exception("an answer could not be made into text")
                choice.fail("the answer could not be made into text")


class Choice:
    """One answer: its text, how far it is read, and how it ended."""

    def __init__(self, index: int, growing: Growing, request: Request) -> None:
        self.index, self.growing, self.request = index, growing, request
        self.number: int | None = None
        """The engine's number of it."""
        self.finish: Finish | None = None
        self.error: str | None = None
        self.is_told = False
        """The reader knows that it has ended."""
        self.tokens = 0

    def take(self, output: Output) -> None:
        """Add what the engine gave."""
        if self.finish is not None:
            return
        self.request.note(len(output.tokens))
        tops = output.top or ((),) * len(output.tokens)
        for token, logprob, top in zip(output.tokens, output.logprobs, tops, strict=True):
            self.tokens += 1
            self.growing.push(token, logprob, top)
            if self.growing.is_stopped:
                self._end("stop")
                self.cancel()
                return
        if output.finish_reason in ("error", "cancelled"):  # what we cancel has ended before
            self.fail(output.error or "the engine gave the request up")
        elif output.finish_reason is not None:
            self._end(output.finish_reason)
        elif self.request.is_streamed and self.growing.delta.tokens > MOST_UNREAD:
            self.fail(f"the answer was {self.growing.delta.tokens:,} tokens ahead of its reader "
                      f"and was given up; read faster, or ask for at most {MOST_UNREAD:,} tokens")

    def fail(self, why: str) -> None:
        """End in an error."""
        if self.finish is None:
            self.error = why
            self._end("error")
            self.cancel()

    def cancel(self) -> None:
        """Let the engine drop what it has not done."""
        if self.number is not None:
            self.request.engine.cancel(self.number)

    def _end(self, finish: Finish) -> None:
        self.growing.end()
        self.finish = finish
        self.request.changed.set()


class Request:
    """The answers of one HTTP request, and when their tokens came."""

    def __init__(self, engine: Engine, mailbox: Mailbox, is_streamed: bool) -> None:
        self.engine, self._mailbox, self.is_streamed = engine, mailbox, is_streamed
        self.choices: list[Choice] = []
        self.changed = asyncio.Event()
        self.started = time.perf_counter()
        self.first: float | None = None
        """When the first token came."""
        self.last = self.started
        self.prompt_tokens = 0

    def add(self, prompt: Sequence[int], samplings: Sequence[Sampling],
            growing: Sequence[Growing], top_logprobs: int) -> None:
        """Queue a prompt once for each sampling; all are dropped when one is refused."""
        self.prompt_tokens += len(prompt)
        for sampling, text in zip(samplings, growing, strict=True):
            choice = Choice(len(self.choices), text, self)
            self.choices.append(choice)

            def post(output: Output, choice: Choice = choice) -> None:
                self._mailbox.post(choice, output)

            choice.number = self.engine.add(prompt, sampling, post, top_logprobs)

    def note(self, tokens: int) -> None:
        """Keep the time of new tokens."""
        if tokens:
            self.last = time.perf_counter()
            self.first = self.first or self.last
        self.changed.set()

    @property
    def is_done(self) -> bool:
        """Every answer has ended."""
        return all(choice.finish is not None for choice in self.choices)

    @property
    def tokens(self) -> int:
        """Tokens of all answers so far."""
        return sum(choice.tokens for choice in self.choices)

    async def news(self) -> list[tuple[Choice, Delta]]:
        """Wait for a change; return the choices that have one, each with its new piece.

        A choice that has ended is among them once, with its last piece, which may be empty.
        """
        await self.changed.wait()
        self.changed.clear()
        found = []
        for choice in self.choices:
            piece = choice.growing.take()
            has_ended = choice.finish is not None and not choice.is_told
            choice.is_told |= has_ended
            if piece or has_ended:
                found.append((choice, piece))
        return found

    async def wait(self) -> None:
        """Wait until every answer has ended; raises what ended one in an error."""
        while not self.is_done:
            await self.changed.wait()
            self.changed.clear()
        for choice in self.choices:
            if choice.error is not None:
                raise Refusal(choice.error, code="server_error", status=500)

    def close(self) -> None:
        """Let the engine drop what it has not done, as when the client has left."""
        for choice in self.choices:
            if choice.finish is None:
                choice.finish = "cancelled"
                choice.cancel()
