"""A model of dsjax as lm-evaluation-harness 0.4.13 asks one: likelihoods, and answers in writing.

What the harness defines is its own code: a context and its continuation are encoded by `TemplateLM`
(lm_eval/api/model.py), windows of a whole text cut by `get_rolling_token_windows`
(lm_eval/utils.py). Texts are scored by `likelihood.Scorer` and answers written by the engine, each
task's for itself: the numbers of a task do not depend on which others are asked with it, and are
those of `dsjax evaluate` to the bit.
"""

from __future__ import annotations

import collections
import contextlib
import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

from tqdm import tqdm

from dsjax import infer
from dsjax.errors import UserError, say
from dsjax.evaluate import answers, identity, requests
from dsjax.evaluate.answers import Asked
from dsjax.evaluate.harness import arguments, chat, generation
from dsjax.evaluate.harness.chat import Messages
from dsjax.evaluate.harness.installed import (
    TemplateLM,
    get_rolling_token_windows,
    make_disjoint_window,
    register_model,
)
from dsjax.evaluate.likelihood import Scorer, Text
from dsjax.infer.engine.device import Device
from dsjax.infer.engine.engine import Engine
from dsjax.serve import template
from dsjax.serve.template import ChatTemplate
from dsjax.serve.text import Growing, Vocabulary

Encoded = tuple[tuple[str, str] | None, list[int], list[int]]
"""Texts of a request, None for a part of one; ids of its context and of its continuation."""


@register_model("dsjax")
class DsjaxLM(TemplateLM):
    """A run or a released checkpoint on the devices there are."""

    def __init__(self, batch_size: int | str | None = None, max_batch_size: int | None = None,
                 device: str | None = None, **model_args: Any) -> None:
        """Load a model; `arguments.ModelArgs` says what `model_args` may hold."""
        super().__init__()
        self.arguments = arguments.read(model_args, batch_size, max_batch_size, device)
        self.model = infer.load(self.arguments.folder, self.arguments.choice)
        self._words = self.model.tokenizer
        self._begin = self._words.core.id_to_token(self.prefix_token_id) or ""

    @cached_property
    def scorer(self) -> Scorer:
        """The scorer of texts."""
        return Scorer(self.model, self.arguments.context)

    @cached_property
    def engine(self) -> Engine:
        """The engine, made when something is to be written."""
        device = Device(self.model, self.arguments.setting)
        if not device.is_invariant:
            say("dsjax: on this machine, or with so few pages, it is not shown that an answer's "
                "last bits do not depend on who else is asked")
        return Engine(device)

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        return self._words.end_id

    @property
    def prefix_token_id(self) -> int:
        """The token before a text that has nothing before it."""
        return requests.prefix(self._words)

    @property
    def max_length(self) -> int:
        """Positions of a text."""
        return self.arguments.context or self.model.context

    @property
    def max_gen_toks(self) -> int:
        """New tokens of an answer, where the task names no number."""
        return self.arguments.max_gen_toks

    @property
    def batch_size(self) -> int:
        """Requests that are answered at once on each device."""
        return self.arguments.slots

    @property
    def tokenizer_name(self) -> str:
        """Name of the tokenizer and of the template, by which the harness keeps prompts."""
        source = "" if self._template is None else self._template.source
        return f"dsjax-{self._words.fingerprint}-{hashlib.sha256(source.encode()).hexdigest()[:16]}"

    def get_model_info(self) -> dict[str, Any]:
        """Name the model in the harness's results."""
        found = identity.of(self.arguments.folder, self.model)
        return {f"model_{name}": value for name, value in found.items()}

    def tok_encode(self, string: str, add_special_tokens: bool | None = None,
                   **kwargs: Any) -> list[int]:
        """Return the ids of a text as transformers' tokenizer of these files gives them.

        A text that begins with the begin token's name, as a chat template's does, gets no other.
        """
        is_begun = add_special_tokens is None and bool(self._begin) and (
            string.startswith(self._begin))
        if is_begun or add_special_tokens is False:
            return self._words.prompt(string, is_begun=False)
        return self._words.prompt(string)

    def loglikelihood(self, requests: Sequence[Any],
                      disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Score continuations: their log-probability, and if greedy decoding would give them."""
        found: dict[int, tuple[float, bool]] = {}
        for request in requests:
            if not request.args[1]:
                raise UserError(f"{_name(request)} asks for the likelihood of an empty text; take "
                                "it out")
        for numbers in _by_task(requests):
            own = [requests[i] for i in numbers]
            found |= zip(numbers, super().loglikelihood(own, disable_tqdm), strict=True)
        return [found[i] for i in range(len(requests))]

    def loglikelihood_rolling(self, requests: Sequence[Any],
                              disable_tqdm: bool = False) -> list[float]:
        """Score whole texts, in windows of the context; every token counts once."""
        found = [0.0] * len(requests)
        for numbers in _by_task(requests):
            windows: list[Encoded] = []
            owners: list[int] = []
            for i in numbers:
                for pair in get_rolling_token_windows(
                        self.tok_encode(requests[i].args[0]), self.prefix_token_id,
                        max_seq_len=self.max_length, context_len=1):
                    windows.append((None, *make_disjoint_window(pair)))
                    owners.append(i)
            for i, (logprob, _) in zip(owners, self._loglikelihood_tokens(windows, disable_tqdm),
                                       strict=True):
                found[i] += logprob
        for request, logprob in zip(requests, found, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, logprob)
        return found

    def _loglikelihood_tokens(self, requests: Sequence[Encoded], disable_tqdm: bool = False,
                              **kwargs: Any) -> list[tuple[float, bool]]:
        texts = [Text(tuple(context), tuple(continuation)) for _, context, continuation in requests]
        for text, (said, _, _) in zip(texts, requests, strict=True):
            if not text.context or not text.continuation:
                raise UserError(f"the request {str(said)[:200]} has {len(text.context)} tokens of "
                                f"context and {len(text.continuation)} to score; both need one")
            if len(text.continuation) > self.max_length:
                raise UserError(f"the request {str(said)[:100]} has {len(text.continuation):,} "
                                f"tokens to score, and the context is {self.max_length:,}; give "
                                "context= in --model_args, or leave the task out")
        found: dict[int, tuple[float, bool]] = {}
        cut: list[int] = []
        with tqdm(total=len(texts), disable=disable_tqdm,
                  desc="Running loglikelihood requests") as bar:
            for i, scores in self.scorer.stream(texts):
                if not math.isfinite(scores.total):
                    raise UserError("the model's scores are not numbers; its parameters hold NaN "
                                    "or are too large: use an earlier checkpoint")
                found[i] = (scores.total, scores.is_all_greedy)
                cut += [scores.cut] if scores.cut else []
                if requests[i][0] is not None:
                    self.cache_hook.add_partial("loglikelihood", requests[i][0], found[i])
                bar.update()
        _say_cut(cut, len(texts))
        return [found[i] for i in range(len(texts))]

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Let the model answer prompts, each up to its stop texts, the end token or no room."""
        found: dict[int, str] = {}
        vocabulary = Vocabulary(self._words)
        with tqdm(total=len(requests), disable=disable_tqdm,
                  desc="Running generate_until requests") as bar:
            for until, asked in self._asked(requests).items():
                def empty(until: tuple[str, ...] = until) -> Growing:
                    return Growing(vocabulary, until)

                with contextlib.closing(answers.written(self.engine, asked, empty)) as stream:
                    for one, answer in stream:
                        found[one.number] = answer.text
                        self.cache_hook.add_partial("generate_until", requests[one.number].args,
                                                    answer.text)
                        bar.update()
        return [found[i] for i in range(len(requests))]

    def _asked(self, asked: Sequence[Any]) -> dict[tuple[str, ...], list[Asked]]:
        """Requests of the engine, by the texts that end them."""
        made: dict[tuple[str, ...], list[Asked]] = {}
        again: collections.Counter[tuple[str, str]] = collections.Counter()
        cut, lowered = [], set()
        for i, request in enumerate(asked):
            context, given = request.args
            how = generation.read(given, self.max_gen_toks)
            new = how.sampling.max_new_tokens
            fit = requests.fitted(self.tok_encode(context) or [self.prefix_token_id], new,
                                  self.max_length)
            cut += [fit.cut] if fit.cut else []
            lowered |= {(new, fit.max_new_tokens)} if fit.max_new_tokens < new else set()
            seed = how.sampling.seed if how.is_seeded else self.arguments.seed
            sample = again[context, str(given)]
            again[context, str(given)] += 1
            digest = hashlib.sha256(f"{seed} {context} {sample}".encode()).digest()
            made.setdefault(how.until, []).append(Asked(i, sample, fit.ids, replace(
                how.sampling, max_new_tokens=fit.max_new_tokens, stop_ids=self._words.end_ids,
                vocab=self._words.vocab, seed=int.from_bytes(digest[:4], "big") >> 1)))
        for new, room in sorted(lowered):
            say(f"dsjax: answers have room for {room:,} tokens, not {new:,}, half of the context "
                f"of {self.max_length:,}")
        _say_cut(cut, len(asked))
        return made

    def apply_chat_template(self, chat_history: Messages,
                            add_generation_prompt: bool = True) -> str:
        """Render a conversation by the checkpoint's own template."""
        return chat.render(self._required, chat_history, add_generation_prompt)

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """Return the template's text for the harness's results."""
        if not chat_template:
            return None
        if isinstance(chat_template, str):
            raise UserError(f"--apply_chat_template {chat_template[:60]} names a template, and "
                            "here is the checkpoint's own alone; give the flag without a name")
        return self._required.source

    @cached_property
    def _template(self) -> ChatTemplate | None:
        return template.load(self.arguments.folder, self._words)

    @property
    def _required(self) -> ChatTemplate:
        if self._template is None:
            raise UserError(f"{self.arguments.folder} has no chat template; leave "
                            "--apply_chat_template out")
        return self._template


def _by_task(requests: Sequence[Any]) -> Iterator[list[int]]:
    """Numbers of the requests of each task."""
    by_task: dict[str | None, list[int]] = {}
    for i, request in enumerate(requests):
        by_task.setdefault(request.task_name, []).append(i)
    yield from by_task.values()


def _name(request: Any) -> str:
    return f"item {request.doc_id} of {request.task_name}"


def _say_cut(cut: Sequence[int], requests: int) -> None:
    if cut:
        say(f"dsjax: {len(cut):,} of {requests:,} requests were longer than the context and cut "
            f"from the left, {sum(cut):,} tokens in all")
