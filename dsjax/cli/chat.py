"""`dsjax chat FOLDER`: talk to a model in the terminal."""

from __future__ import annotations

import contextlib
import queue
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

from dsjax.cli.generate import Page
from dsjax.cli.process import context, engines, models
from dsjax.cli.process.engines import EngineFlags
from dsjax.cli.process.models import ModelFlags
from dsjax.cli.process.sampling import SamplingFlags, sampling
from dsjax.config.fields import seed_in_range
from dsjax.config.flags.flag_tree import Mark, Word
from dsjax.errors import UserError
from dsjax.terminal import Console

if TYPE_CHECKING:
    from dsjax.infer import Model, Sampling
    from dsjax.serve.template import ChatTemplate

CONTINUED = 128
"""New tokens where a text is continued and no number is asked for."""


@dataclass(frozen=True)
class Chat:
    """Talk to the newest checkpoint of a run, or to a released one.

      dsjax chat DeepSeek-V2-Lite --precision bf16
      dsjax chat runs/tiny --temperature 0.6

    A checkpoint with a chat template answers in turns; one without continues what you write. /reset
    forgets all that was said, ctrl-C stops an answer, ctrl-D leaves.
    """

    folder: Annotated[str, Word("FOLDER")]
    """Folder that `dsjax train` or `dsjax demo` wrote, or a released checkpoint."""
    system: str | None = None
    """A message before the first, for a model with a chat template."""
    sampling: Annotated[SamplingFlags, Mark.INLINE] = field(default_factory=SamplingFlags)
    max_new_tokens: int | None = None
    """Tokens of an answer at most; by default what the context has room for, and 128 where a text
    is continued."""
    engine: Annotated[EngineFlags, Mark.INLINE] = field(
        default_factory=lambda: EngineFlags(slots=1))
    model: Annotated[ModelFlags, Mark.INLINE] = field(default_factory=ModelFlags)
    cache: bool = True
    """Keep compiled programs in a cache folder of yours, so that the next start is faster."""


def main(args: Chat) -> int:
    """Run the command; returns the exit status."""
    from dsjax.cli.serve import require

    require()
    seed_in_range(args.sampling.seed, "--seed ")
    models.find_devices(args.model)
    from dsjax.serve import template

    sampling(args.sampling, 1 if args.max_new_tokens is None else args.max_new_tokens)
    model = models.load(args.folder, args.model)
    context.say_if_beyond(model, args.engine.context)
    found = template.load(args.folder, model.tokenizer)
    if found is None and args.system is not None:
        raise UserError(f"--system {args.system[:40]!r} needs a chat template, which {args.folder} "
                        "does not have; leave it out")
    engine = engines.make(model, args.engine, args.model.experts.expert_loads, is_consumed=True)
    with _running(engine) as failures, _interruptible():
        _talk(Talk(args, model, engine, found, failures), Page(Console(highlight=False)))
    engines.save_loads(engine, args.engine)
    return 0


@contextlib.contextmanager
def _running(engine: Any) -> Iterator[list[BaseException]]:
    """Step the engine on a thread of its own; what ends it early is put into the list."""
    failures: list[BaseException] = []
    until = threading.Event()

    def run() -> None:
        try:
            engine.run(until)
        except BaseException as failure:  # a thread's end is silent
            failures.append(failure)

    thread = threading.Thread(target=run, name="engine", daemon=True)
    thread.start()
    try:
        yield failures
    finally:
        until.set()
        thread.join(10)


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt here however often it comes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _talk(talk: Talk, page: Page) -> None:
    """Read lines and answer them, until there are no more."""
    is_terminal = sys.stdin.isatty()
    if is_terminal:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401 (lines that are typed can be edited)
        page.write("/reset forgets, ctrl-C stops an answer, ctrl-D leaves\n", style="dim")
    while True:
        try:
            line = input("> " if is_terminal else "")
        except EOFError:
            if is_terminal:
                page.write("\n")
            return
        except KeyboardInterrupt:
            page.write("\n")
            continue
        except UnicodeDecodeError:
            page.write("that was not UTF-8; write it in UTF-8\n", style="dim")
            continue
        if line.strip() == "/reset":
            talk.reset()
            page.write("forgotten\n", style="dim")
        elif line:
            try:
                talk.answer(line, page)
            except UserError as error:
                page.write(f"{error}\n", style="dim")


class Talk:
    """A conversation, or a text that grows."""

    def __init__(self, args: Chat, model: Model, engine: Any,
                 template: ChatTemplate | None, failures: list[BaseException]) -> None:
        from dsjax.serve.text import Vocabulary

        self._failures = failures
        self._args, self._model, self._engine, self._template = args, model, engine, template
        self._vocabulary = Vocabulary(model.tokenizer)
        self.reset()

    def reset(self) -> None:
        """Forget all but the system's message."""
        system = self._args.system
        self._messages = [] if system is None else [{"role": "system", "content": system}]
        self._text: list[int] = []
        self._turn = 0

    def answer(self, line: str, page: Page) -> None:
        """Write what the model says to a line; ctrl-C ends it, and what was said stays said."""
        from dsjax.serve.text import Growing, Thoughts

        ids, is_thinking = self._prompt(line, page)
        has_thoughts = self._template is not None and self._template.has_thoughts
        growing = Growing(self._vocabulary, (), Thoughts(is_thinking) if has_thoughts else None)
        news: queue.SimpleQueue[Any] = queue.SimpleQueue()
        before, start = self._engine.stats(), time.perf_counter()
        number = self._engine.add(ids, self._sampling(len(ids)), news.put)
        self._turn += 1
        said, finish, error = "", None, ""
        tokens: list[int] = []
        try:
            while finish is None:
                output = self._next(news)
                start = start if tokens else time.perf_counter()
                tokens += output.tokens
                finish, error = output.finish_reason, output.error
                for token in output.tokens:
                    growing.push(token)
                if finish is not None:
                    growing.end()
                piece = growing.take()
                said += piece.content
                page.write(piece.reasoning, style="dim")
                page.write(piece.content)
        except KeyboardInterrupt:
            self._engine.cancel(number)
        finally:
            self._keep(ids, tokens, said)
        if finish == "error":
            raise UserError(error)
        page.write("\n")
        seconds = time.perf_counter() - start
        page.write(self._line(len(tokens), seconds, before, finish) + "\n", style="dim")

    def _next(self, news: queue.SimpleQueue[Any]) -> Any:
        """The engine's next output; raises what ended the engine."""
        while True:
            with contextlib.suppress(queue.Empty):
                return news.get(timeout=1)
            if self._failures:
                raise self._failures[0]

    def _prompt(self, line: str, page: Page) -> tuple[list[int], bool]:
        """Ids of all that was said, up to the line; the oldest is left out where it is too long."""
        from dsjax.serve.refusal import Refusal

        room = self._engine.max_len - 1
        if self._template is None:
            words = self._model.tokenizer
            ids = [*self._text, *(words.encode(line) if self._text else words.prompt(line))]
            room = self._engine.max_len - min(self._args.max_new_tokens or CONTINUED,
                                              self._engine.max_len // 2)
            if len(ids) > room:
                page.write(f"the oldest {len(ids) - room:,} tokens are left out\n", style="dim")
            return ids[-room:], False
        self._messages.append({"role": "user", "content": line})
        left, first = 0, int(self._messages[0]["role"] == "system")
        try:
            while True:
                prompt = self._template.prompt(self._messages)
                if len(prompt.ids) <= room or len(self._messages) - first < 3:
                    break
                del self._messages[first: first + 2]
                left += 2
        except Refusal as refusal:
            self._messages.pop()
            raise UserError(refusal.message) from None
        if len(prompt.ids) > room:
            self._messages.pop()
            raise UserError(f"the message makes {len(prompt.ids):,} tokens, and the context has "
                            f"{self._engine.max_len:,}; write a shorter one")
        if left:
            page.write(f"the oldest {left} messages are left out\n", style="dim")
        return prompt.ids, prompt.is_thinking

    def _sampling(self, prompt: int) -> Sampling:
        args, words = self._args, self._model.tokenizer
        most = args.max_new_tokens or (CONTINUED if self._template is None else 2**31)
        return sampling(args.sampling, min(most, self._engine.max_len - prompt),
                        stop_ids=words.end_ids, seed=(args.sampling.seed + self._turn) % 2**63,
                        vocab=words.vocab)

    def _keep(self, ids: list[int], tokens: list[int], said: str) -> None:
        """Remember an answer, also one that was stopped."""
        if self._template is None:
            ends = self._model.tokenizer.end_ids
            self._text = [*ids, *(token for token in tokens if token not in ends)]
        else:
            self._messages.append({"role": "assistant", "content": said})

    def _line(self, tokens: int, seconds: float, before: Any, finish: str | None) -> str:
        """The numbers of an answer in one line."""
        parts = [f"{tokens} tokens", f"{max(tokens - 1, 0) / max(seconds, 1e-9):,.0f} tokens/s"]
        after = self._engine.stats()
        if after.drafted > before.drafted:
            share = (after.accepted - before.accepted) / (after.drafted - before.drafted)
            parts.append(f"drafts accepted {share:.0%}")
        if finish == "length":
            parts.append("cut at its longest")
        return "; ".join([*parts, *(["stopped"] if finish is None else [])])
