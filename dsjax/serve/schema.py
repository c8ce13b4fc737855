"""A body becomes a typed request, or a refusal that names the field, its value and what it takes.

Fields are OpenAI's, with vLLM's names for what OpenAI has none for (top_k, min_p,
repetition_penalty, ignore_eos, chat_template_kwargs). As in OpenAI's API null stands for absence
and a field that nobody knows is refused. Fields that change nothing here are ignored (IGNORED);
those that would change the answer and cannot be obeyed are refused unless they ask for nothing
(NEUTRAL).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from dsjax.serve.refusal import Refusal, kind, quoted

IGNORED = ("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key",
           "parallel_tool_calls")
NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "echo": (False,), "suffix": ("",), "best_of": (1,), "logit_bias": ({},), "tools": ([],),
    "tool_choice": ("none", "auto"), "functions": ([],), "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},), "modalities": (["text"],),
}
"""Fields that are not served, with the values that ask for nothing."""

MOST_STOPS, MOST_STOP_LENGTH = 4, 1000
MOST_CHOICES = 128
"""Answers of one request, all prompts together."""
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
"""Roles that a message may have, and those that the template knows them by."""


@dataclass(frozen=True)
class Asked:
    """Fields that both ways of asking share."""

    model: str
    n: int
    max_tokens: int | None
    sampling: Mapping[str, Any]
    """Fields of `Sampling` that the client gave."""
    stop: tuple[str, ...]
    top_logprobs: int | None
    """None: no log-probabilities; else so many others beside each token's own."""
    is_streamed: bool
    with_usage: bool
    """A last chunk of a stream tells the usage."""
    ignores_end: bool
    """The model's end tokens do not end the answer."""


@dataclass(frozen=True)
class Completion:
    """A body of /v1/completions."""

    prompts: tuple[str | tuple[int, ...], ...]
    asked: Asked


@dataclass(frozen=True)
class Chat:
    """A body of /v1/chat/completions."""

    messages: tuple[dict[str, str], ...]
    asked: Asked
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)


def parse(body: bytes) -> dict[str, Any]:
    """Return the JSON object of a body."""
    def constant(name: str) -> None:
        raise ValueError(f"{name} is not a JSON number")

    try:
        data = json.loads(body, parse_constant=constant)
    except RecursionError:
        raise Refusal("the body is nested too deep; send a flatter JSON object") from None
    except ValueError as error:  # also bytes that are not UTF-8, and numbers of too many digits
        why = "it is empty" if not body.strip() else str(error)[:100]
        raise Refusal(f"the body is not JSON ({why}); send a JSON object in UTF-8") from None
    if not isinstance(data, dict):
        raise Refusal(f"the body is {kind(data)}; send a JSON object")
    return data


def completion(body: Mapping[str, Any]) -> Completion:
    """Read a body of /v1/completions."""
    fields = Fields(body)
    prompts = _prompts(fields.take("prompt"))
    top = fields.whole("logprobs", 0, 5)
    asked = _asked(fields, top)
    if len(prompts) * asked.n > MOST_CHOICES:
        raise Refusal(f"{len(prompts)} prompts with n={asked.n} ask for {len(prompts) * asked.n} "
                      f"answers; ask for at most {MOST_CHOICES} at once", "n")
    fields.end()
    return Completion(prompts, asked)


def chat(body: Mapping[str, Any]) -> Chat:
    """Read a body of /v1/chat/completions."""
    fields = Fields(body)
    messages = fields.take("messages")
    if not isinstance(messages, list) or not messages:
        raise Refusal(f"messages is {quoted(messages)}; give a list of one message or more",
                      "messages")
    read = tuple(_message(message, f"messages[{i}]") for i, message in enumerate(messages))
    wants, top = fields.flag("logprobs"), fields.whole("top_logprobs", 0, 20)
    if top is not None and not wants:
        raise Refusal("top_logprobs needs logprobs; set logprobs to true", "top_logprobs")
    kwargs = fields.take("chat_template_kwargs") or {}
    if not isinstance(kwargs, dict):
        raise Refusal(f"chat_template_kwargs is {kind(kwargs)}; give an object",
                      "chat_template_kwargs")
    asked = _asked(fields, (top or 0) if wants else None)
    fields.end()
    return Chat(read, asked, kwargs)


class Fields:
    """A body whose fields are taken one by one; what is left over at the end is refused."""

    def __init__(self, body: Mapping[str, Any]) -> None:
        self._left = {name: value for name, value in body.items() if value is not None}

    def take(self, name: str) -> Any:
        """Return a field as it is; None if it is absent or null."""
        return self._left.pop(name, None)

    def flag(self, name: str) -> bool:
        """Return a boolean, False if absent."""
        value = self.take(name)
        if not isinstance(value, bool | None):
            raise Refusal(f"{name} is {quoted(value)}; give true or false", name)
        return bool(value)

    def whole(self, name: str, least: int, most: int) -> int | None:
        """Return an integer of a range, or None."""
        value = self.take(name)
        if value is None:
            return None
        if type(value) is not int or not least <= value <= most:
            raise Refusal(f"{name} is {quoted(value)}; give a whole number from {least} to {most}",
                          name)
        return value

    def number(self, name: str, least: float, most: float) -> float | None:
        """Return a finite number of a range, or None."""
        value = self.take(name)
        if value is None:
            return None
        is_number = type(value) in (int, float)
        if not is_number or not least <= value <= most or not math.isfinite(value):
            raise Refusal(f"{name} is {quoted(value)}; give a number from {least:g} to {most:g}",
                          name)
        return float(value)

    def end(self) -> None:
        """Refuse what nobody took."""
        for name, value in self._left.items():
            if name in IGNORED or value in NEUTRAL.get(name, ()):
                continue
            if name in NEUTRAL:
                raise Refusal(f"{name} is not served here; leave it out", name, "unsupported")
            raise Refusal(f"Unknown parameter: {quoted(name)}; leave it out", name[:100],
                          "unknown_parameter")


def _asked(fields: Fields, top_logprobs: int | None) -> Asked:
    """The fields that both ways of asking share."""
    model = fields.take("model")
    if not isinstance(model, str):
        raise Refusal("you must provide a model parameter; /v1/models lists what is served",
                      "model")
    is_streamed = fields.flag("stream")
    options = fields.take("stream_options")
    if options is not None and not is_streamed:
        raise Refusal("stream_options needs stream; set stream to true", "stream_options")
    if options is not None and not isinstance(options, dict):
        raise Refusal(f"stream_options is {kind(options)}; give an object", "stream_options")
    of_stream = Fields(options or {})
    with_usage = of_stream.flag("include_usage")
    of_stream.take("include_obfuscation")  # padding against eavesdroppers; we send none
    of_stream.end()
    return Asked(
        model=model,
        n=fields.whole("n", 1, MOST_CHOICES) or 1,
        max_tokens=_max_tokens(fields),
        sampling=_sampling(fields),
        stop=_stops(fields.take("stop")),
        top_logprobs=top_logprobs,
        is_streamed=is_streamed,
        with_usage=with_usage,
        ignores_end=fields.flag("ignore_eos"),
    )


def _max_tokens(fields: Fields) -> int | None:
    """max_tokens, or max_completion_tokens, its newer name."""
    older = fields.whole("max_tokens", 1, 2**31 - 1)
    newer = fields.whole("max_completion_tokens", 1, 2**31 - 1)
    if older is not None and newer is not None and older != newer:
        raise Refusal(f"max_tokens={older} and max_completion_tokens={newer} differ; give one",
                      "max_completion_tokens")
    return older if newer is None else newer


def _sampling(fields: Fields) -> dict[str, Any]:
    """Fields of `Sampling` by its names, those alone that the client gave and that change it."""
    tiny = 1e-6
    read: dict[str, tuple[Any, Callable[[Any], bool]]] = {
        "temperature": (fields.number("temperature", 0, 2), lambda v: True),
        "top_p": (fields.number("top_p", tiny, 1), lambda v: True),
        "top_k": (fields.whole("top_k", -1, 2**31 - 1), lambda v: v > 0),
        "min_p": (fields.number("min_p", 0, 1), lambda v: v > 0),
        "presence_penalty": (fields.number("presence_penalty", -2, 2), lambda v: v != 0),
        "frequency_penalty": (fields.number("frequency_penalty", -2, 2), lambda v: v != 0),
        "repetition_penalty": (fields.number("repetition_penalty", tiny, 10), lambda v: v != 1),
        "seed": (fields.whole("seed", -(2**63), 2**63 - 1), lambda v: True),
    }
    return {name: value for name, (value, changes) in read.items()
            if value is not None and changes(value)}


def _stops(given: Any) -> tuple[str, ...]:
    """Stop strings: one, or a list of up to four."""
    stops = [given] if isinstance(given, str) else [] if given is None else given
    if not isinstance(stops, list) or not all(isinstance(stop, str) for stop in stops):
        raise Refusal(f"stop is {quoted(given)}; give a text or a list of texts", "stop")
    if len(stops) > MOST_STOPS:
        raise Refusal(f"stop has {len(stops):,} texts; give at most {MOST_STOPS}", "stop")
    for stop in stops:
        if not stop:
            raise Refusal("stop has an empty text, which would end every answer at once; leave "
                          "it out", "stop")
        if len(stop) > MOST_STOP_LENGTH:
            raise Refusal(f"stop has a text of {len(stop):,} characters; give at most "
                          f"{MOST_STOP_LENGTH:,}", "stop")
    return tuple(stops)


def _prompts(given: Any) -> tuple[str | tuple[int, ...], ...]:
    """One prompt or several, each a text or ids."""
    if given is None:
        raise Refusal("you must provide a prompt; give a text, a list of ids, or a list of such",
                      "prompt")
    is_ids = isinstance(given, list) and given and all(type(one) is int for one in given)
    several = given if isinstance(given, list) and not is_ids else [given]
    if not several:
        raise Refusal("prompt is an empty list; give a text or a list of ids", "prompt")
    read: list[str | tuple[int, ...]] = []
    for one in several:
        if isinstance(one, list) and one and all(type(i) is int for i in one):
            read.append(tuple(one))
        elif isinstance(one, str):
            read.append(one)
        else:
            raise Refusal(f"prompt has {quoted(one)}; give a text, a list of ids, or a list of "
                          "such", "prompt")
    return tuple(read)


_EMPTY = ("refusal", "audio", "function_call", "tool_calls", "annotations")
"""Fields that clients send back with what the model said; here they hold nothing."""


def _message(given: Any, where: str) -> dict[str, str]:
    """A message as templates take it: role and content, both texts."""
    if not isinstance(given, dict):
        raise Refusal(f"{where} is {kind(given)}; give an object with role and content", where)
    role, content = given.get("role"), given.get("content")
    if not isinstance(role, str) or role not in ROLES:
        raise Refusal(f"{where}.role is {quoted(role)}; choose from {', '.join(ROLES)}",
                      f"{where}.role")
    for name, value in given.items():
        if name in ("role", "content", "name", "reasoning_content"):
            continue
        if name not in _EMPTY or value not in (None, []):
            raise Refusal(f"{where} has {quoted(name)}, which is not served here; leave it out",
                          where)
    if isinstance(content, list):
        content = "".join(_part(part, f"{where}.content[{i}]") for i, part in enumerate(content))
    if not isinstance(content, str):
        raise Refusal(f"{where}.content is {quoted(content)}; give a text, or a list of parts of "
                      "type text", f"{where}.content")
    return {"role": ROLES[role], "content": content}


def _part(given: Any, where: str) -> str:
    """The text of a part of a message."""
    if not isinstance(given, dict) or given.get("type") != "text" or \
            not isinstance(given.get("text"), str):
        raise Refusal(f"{where} is {quoted(given)}; give an object of type text with a text",
                      where)
    return given["text"]
