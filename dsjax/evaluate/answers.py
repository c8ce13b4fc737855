"""Items whose answer is written by the model: through the engine, and graded as they come.

An answer depends on its prompt, its seed and its sampling (the engine's promise), and its seed on
the evaluation's, the task, the item and the sample. So what is asked after a stop is what was not
answered, and it gets the answer that it would have got.
"""

from __future__ import annotations

import collections
import contextlib
import hashlib
import os
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

from dsjax.data.tokenizers.tokenizer import Tokenizer
from dsjax.errors import UserError
from dsjax.evaluate import requests
from dsjax.evaluate.journal import Record
from dsjax.evaluate.requests import Fitted
from dsjax.evaluate.tasks.task import Item, Task, Verdict
from dsjax.infer import Sampling
from dsjax.infer.engine.engine import Engine, Output
from dsjax.serve.text import Growing, Vocabulary

Encode = Callable[[str], list[int]]


@dataclass(frozen=True)
class Manner:
    """Sampling of answers."""

    temperature: float = 0.0
    top_p: float = 1.0
    max_new_tokens: int | None = None
    """None is the task's own."""
    samples: int = 1
    """Answers to each item."""
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what no sampling is, and samples that would all be the same."""
        Sampling(self.temperature, self.top_p,
                 1 if self.max_new_tokens is None else self.max_new_tokens)
        if self.samples < 1:
            raise UserError(f"--samples {self.samples} asks for no answer; use at least 1")
        if self.samples > 1 and not self.temperature:
            raise UserError(f"--samples {self.samples} at temperature 0 asks for the same answer "
                            f"{self.samples} times; give --temperature, as 0.6, or --samples 1")

    def sampling(self, name: str, new: int, words: Tokenizer) -> Sampling:
        """The request of the answer of some name."""
        digest = hashlib.sha256(f"{self.seed} {name}".encode()).digest()
        return Sampling(self.temperature, self.top_p, max_new_tokens=new, stop_ids=words.end_ids,
                        seed=int.from_bytes(digest[:4], "big") >> 1, vocab=words.vocab)


class Answer(NamedTuple):
    """A text that the model wrote."""

    text: str
    tokens: int
    finish_reason: str
    """`stop` for a stop text or the end token, `length` for no room."""


class Asked(NamedTuple):
    """One answer that is wanted."""

    number: int
    """Of the item among those that are asked."""
    sample: int
    prompt: list[int]
    sampling: Sampling


def prompts(task: Task, items: Sequence[Item], encode: Encode, manner: Manner,
            context: int) -> list[Fitted]:
    """Prompts of items, within the context."""
    new = manner.max_new_tokens or task.generated.max_new_tokens
    made = [requests.fitted(encode(item.prompt), new, context) for item in items]
    for item, one in zip(items, made, strict=True):
        if not one.ids:
            raise UserError(f"item {item.name} of {task.name} has an empty prompt; take its line "
                            "out")
    return made


def ask(task: Task, items: Sequence[Item], fits: Sequence[Fitted], engine: Engine,
        words: Tokenizer, manner: Manner) -> Iterator[tuple[Item, Record]]:
    """Yield each item with its record, when all its answers are there and graded."""
    asked = (Asked(number, k, fit.ids, manner.sampling(f"{task.name} {item.index} {k}",
                                                       fit.max_new_tokens, words))
             for number, (item, fit) in enumerate(zip(items, fits, strict=True))
             for k in range(manner.samples))
    vocabulary = Vocabulary(words)
    got: dict[int, dict[int, Answer]] = collections.defaultdict(dict)
    grading: collections.deque[tuple[int, list[Answer], list[Future[dict[str, Verdict]]]]] = (
        collections.deque())
    pool = ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="grade")

    def empty() -> Growing:
        return Growing(vocabulary, task.generated.stop)

    try:
        with contextlib.closing(written(engine, asked, empty)) as stream:
            for one, answer in stream:
                got[one.number][one.sample] = answer
                if len(got[one.number]) == manner.samples:
                    answers = [answer for _, answer in sorted(got.pop(one.number).items())]
                    question = items[one.number].question
                    grading.append((one.number, answers, [
                        pool.submit(task.generated.grade, question, answer.text)
                        for answer in answers]))
                while grading and all(future.done() for future in grading[0][2]):
                    yield _graded(items, fits, *grading.popleft())
        while grading:
            yield _graded(items, fits, *grading.popleft())
    finally:
        pool.shutdown(cancel_futures=True)


def _graded(items: Sequence[Item], fits: Sequence[Fitted], number: int, answers: list[Answer],
            verdicts: list[Future[dict[str, Verdict]]]) -> tuple[Item, Record]:
    """Make what is logged of an item."""
    fit = fits[number]
    return items[number], {
        "answers": [{**answer._asdict(), "verdicts": {
            name: verdict._asdict() for name, verdict in future.result().items()}}
            for answer, future in zip(answers, verdicts, strict=True)],
        "cut": fit.cut, "max_new_tokens": fit.max_new_tokens}


def written(engine: Engine, asked: Iterable[Asked],
            begin: Callable[[], Growing]) -> Generator[tuple[Asked, Answer]]:
    """Ask for answers, as many at once as the engine takes, and yield them as they are done.

    begin: makes the empty text of an answer.
    """
    most = engine.slots + min(engine.setting.max_queue, engine.slots)
    waiting = iter(asked)
    live: dict[int, _Live] = {}
    done: collections.deque[tuple[Asked, Answer]] = collections.deque()
    try:
        while True:
            while len(live) < most and (one := next(waiting, None)) is not None:
                begun = _Live(engine, one, begin(), done)
                live[begun.number] = begun
            if not live:
                return
            engine.step()
            live = {number: one for number, one in live.items() if not one.is_gone}
            while done:
                yield done.popleft()
    except GeneratorExit:  # nobody waits any more
        for number in live:
            engine.cancel(number)
        while engine.step():
            pass
        raise


class _Live:
    """An answer as its tokens come; the engine is told when a stop text has ended it."""

    def __init__(self, engine: Engine, asked: Asked, text: Growing,
                 done: collections.deque[tuple[Asked, Answer]]) -> None:
        """Queue the request."""
        self._engine, self._asked, self._text, self._done = engine, asked, text, done
        self._tokens, self._is_over = 0, False
        self.is_gone = False
        """The engine has forgotten the request."""
        self.number = engine.add(asked.prompt, asked.sampling, self._take)

    def _take(self, output: Output) -> None:
        """Take new tokens, in the thread that steps."""
        self.is_gone = output.finish_reason is not None
        if self._is_over:
            return
        if output.finish_reason == "error":
            raise UserError(output.error)
        for token in output.tokens:
            self._tokens += 1
            self._text.push(token)
            if self._text.is_stopped:
                self._engine.cancel(self.number)
                self._end("stop")
                return
        if output.finish_reason is not None:
            self._end(output.finish_reason)

    def _end(self, reason: str) -> None:
        self._is_over = True
        self._text.end()
        answer = Answer(self._text.take().content, self._tokens, reason)
        self._done.append((self._asked, answer))
