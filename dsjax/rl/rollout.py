"""Rollout: groups of outputs by the engine in this process, with rewards by rule.

Questions go to the engine as requests of any others do. An output depends on the parameters, the
question and its seed, and on nobody else who is served; seeds are made of the run's seed, the step
and the row. Sampling is from the whole distribution at temperature 1, so the log-probabilities that
the engine reports are those of the policy.

Axes: B outputs, T positions of question and output, L mixture layers, K experts per token.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dsjax.data.tokenizers.tokenizer import Tokenizer
from dsjax.errors import UserError
from dsjax.infer.engine.engine import Engine
from dsjax.infer.engine.request import Output
from dsjax.infer.sample import Sampling
from dsjax.rl.preference import Judging
from dsjax.rl.rewards import rules
from dsjax.rl.rewards.rules import Scored
from dsjax.rl.rewards.sections import THINK
from dsjax.rl.tasks.task import Problem
from dsjax.serve.template import ChatTemplate, Prompt
from dsjax.train.tuning import examples

PREFERENCE = "preference"
"""Name of the judge's reward among the rules'."""


@dataclass(frozen=True)
class Asked:
    """Size of a rollout and its rules."""

    samples: int
    max_prompt_tokens: int
    max_new_tokens: int
    rewards: Mapping[str, float]
    temperature: float = 1.0
    """0 is greedy, for an exam; training samples at 1."""
    chat: ChatTemplate | None = None
    """Asks each question as a user's message."""
    judge: Judging | None = None
    """Reward of outputs to questions without an answer, which no rule judges."""

    @property
    def length(self) -> int:
        """Positions of a row."""
        return self.max_prompt_tokens + self.max_new_tokens


@dataclass(frozen=True)
class Rollout:
    """Outputs of a batch of groups, in the order of the questions."""

    problems: tuple[Problem, ...]
    """The question of each output."""
    texts: tuple[str, ...]
    tokens: NDArray[np.int32]  # [B, T] question and output, 0 beyond
    mask: NDArray[np.bool_]  # [B, T] true at tokens of the output
    real: NDArray[np.bool_]  # [B, T] true at all tokens
    engine: NDArray[np.float32]  # [B, T] log-probability of each output token, 0 elsewhere
    routes: NDArray[np.int32] | None  # [B, L, T, K], where the engine keeps them
    is_truncated: NDArray[np.bool_]  # [B]
    groups: NDArray[np.int32]  # [B]
    scored: tuple[Scored, ...]
    seconds: float
    """Of sampling, without rewards."""

    @property
    def rewards(self) -> NDArray[np.float32]:
        """Reward of each output, [B]."""
        return np.array([one.total for one in self.scored], np.float32)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each output, [B]."""
        return self.mask.sum(axis=1)

    def rows(self, here: slice) -> Rollout:
        """Some of the outputs, whole groups."""
        each = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return Rollout(**{name: value[here] if hasattr(value, "__getitem__") else value
                          for name, value in each.items()})

    @property
    def faults(self) -> Counter[str]:
        """Outputs on which each rule failed, which gave them 0."""
        return rules.faults(self.scored)


class _Row:
    """An output as its tokens come."""

    def __init__(self, prompt: list[int]) -> None:
        self.prompt = prompt
        self.tokens: list[int] = []
        self.logprobs: list[float] = []
        self.routes: NDArray[np.int32] | None = None
        self.reason: str | None = None

    def take(self, output: Output) -> None:
        """Take new tokens, in the thread that steps."""
        if output.finish_reason == "error":
            raise UserError(output.error)
        self.tokens += output.tokens
        self.logprobs += output.logprobs
        self.reason, self.routes = output.finish_reason, output.routes


def roll_out(engine: Engine, words: Tokenizer, problems: Sequence[Problem], asked: Asked,
             seed: tuple[int, ...]) -> Rollout:
    """Sample a group of outputs to each problem and score them.

    Raises:
        UserError: a question is longer than the rows, or the model gives no numbers.
    """
    each = [problem for problem in problems for _ in range(asked.samples)]
    prompts = {problem.prompt: _encoded(words, problem.prompt, asked) for problem in problems}
    began = time.perf_counter()
    rows = _sampled(engine, words, [prompts[one.prompt].ids for one in each], asked, seed)
    seconds = time.perf_counter() - began
    texts = [THINK * prompts[one.prompt].is_thinking + _text(words, row)
             for one, row in zip(each, rows, strict=True)]
    scored = _scored(asked, each, texts)
    shape = len(rows), asked.length
    tokens, engine_logprobs = np.zeros(shape, np.int32), np.zeros(shape, np.float32)
    mask, real = np.zeros(shape, bool), np.zeros(shape, bool)
    for r, row in enumerate(rows):
        start, end = len(row.prompt), len(row.prompt) + len(row.tokens)
        tokens[r, :end] = row.prompt + row.tokens
        engine_logprobs[r, start:end] = row.logprobs
        mask[r, start:end], real[r, :end] = True, True
    return Rollout(
        problems=tuple(each), texts=tuple(texts), tokens=tokens, mask=mask, real=real,
        engine=engine_logprobs, routes=_routes(rows, asked.length),
        is_truncated=np.array([row.reason == "length" for row in rows]),
        groups=np.repeat(np.arange(len(problems), dtype=np.int32), asked.samples),
        scored=tuple(scored), seconds=seconds)


def _encoded(words: Tokenizer, question: str, asked: Asked) -> Prompt:
    if asked.chat is None:
        prompt = Prompt(words.encode(question), False)
    else:
        prompt = asked.chat.prompt([{"role": "user", "content": question}])
    if not 0 < len(prompt.ids) <= asked.max_prompt_tokens:
        around = "" if asked.chat is None else " with the chat template around it"
        raise UserError(f"the question {question[:60]!r} has {len(prompt.ids)} tokens{around}, and "
                        f"rows hold 1 to {asked.max_prompt_tokens}; raise --rl.max-prompt-tokens")
    return prompt


def _scored(asked: Asked, each: Sequence[Problem], texts: Sequence[str]) -> list[Scored]:
    """Score outputs by rules, and by the judge where a question has no answer.

    A reward of the judge's that is no number is 0, named and counted as a rule's is.
    """
    given = [(one.prompt, text, one.reference) for one, text in zip(each, texts, strict=True)]
    if asked.judge is None:
        return rules.score_all(asked.rewards, given)
    ruled = iter(rules.score_all(asked.rewards, [row for row in given if row[2]]))
    judged = iter(asked.judge([row[:2] for row in given if not row[2]]))
    return [next(ruled) if reference else _of_judge(next(judged)) for *_, reference in given]


def _of_judge(value: float) -> Scored:
    if math.isfinite(value):
        return Scored(value, {PREFERENCE: value}, {})
    return Scored(0.0, {PREFERENCE: 0.0}, {PREFERENCE: f"it returned {value}"})


def _sampled(engine: Engine, words: Tokenizer, prompts: Sequence[list[int]], asked: Asked,
             seed: tuple[int, ...]) -> list[_Row]:
    """Let the engine answer each prompt, as many at once as it takes."""
    rows, most = [_Row(prompt) for prompt in prompts], engine.slots + engine.setting.max_queue
    ends = words.end_ids
    if asked.chat is not None:  # an answer may be closed by another token than a document
        ends = tuple(dict.fromkeys((*ends, examples.closing(asked.chat, words))))
    begun, ended = 0, 0
    while ended < len(rows):
        while begun < len(rows) and begun - ended < most:
            sampling = Sampling(temperature=asked.temperature, stop_ids=ends,
                                max_new_tokens=asked.max_new_tokens, seed=row_seed(*seed, begun))
            engine.add(rows[begun].prompt, sampling, rows[begun].take)
            begun += 1
        engine.step()
        ended = sum(row.reason is not None for row in rows[:begun])
    return rows


def _routes(rows: Sequence[_Row], length: int) -> NDArray[np.int32] | None:
    """Experts of all rows' tokens [B, L, T, K], the first ones where no token was run.

    The engine never runs an output's last token, and a trainer asks nothing of it; padding has
    experts that differ, as every choice does.
    """
    first = rows[0].routes
    if first is None:
        return None
    layers, per_token = first.shape[1:]
    found = np.empty((len(rows), length, layers, per_token), np.int32)
    found[:] = np.arange(per_token)
    for r, row in enumerate(rows):
        run = len(row.prompt) + len(row.tokens) - 1
        assert row.routes is not None, "an engine keeps all routes or none"
        found[r, :run] = row.routes[:run]
    return np.moveaxis(found, 1, 2)


def row_seed(*parts: int) -> int:
    """Return a seed of 31 bits for a run's seed, a step and a row."""
    return int(np.random.SeedSequence(parts).generate_state(1)[0] >> 1)


def _text(words: Tokenizer, row: _Row) -> str:
    """Text of an output without its end; ids of no word are left out."""
    ended = row.reason == "stop"
    return words.decode(i for i in row.tokens[: len(row.tokens) - ended] if i < words.vocab)


@functools.lru_cache(maxsize=8)
def rewards_of(text: str) -> Mapping[str, float]:
    """Rules and weights of a config's words, as `colon` or `math,format,language:0.5`."""
    found = {}
    for part in text.split(","):
        name, colon, weight = part.strip().partition(":")
        rules.find(name)
        try:
            found[name] = float(weight) if colon else 1.0
        except ValueError:
            raise UserError(f"--rl.rewards {text!r}: the weight {weight!r} of {name} is no number; "
                            "write it as language:0.5") from None
    return found
