"""Messages become a prompt by the checkpoint's own chat template, in a sandbox.

A released checkpoint keeps it in tokenizer_config.json or in chat_template.jinja, a run that was
converted in its `released/`. It is rendered as transformers does it. Names of added tokens that
stand in a message or in a tool's description (a role's, the end's) stay plain text, so that no text
can forge another's role; <think> and </think> of the assistant's are left to the template, which
may cut there.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

from dsjax import disk
from dsjax.data.tokenizers.tokenizer import Tokenizer
from dsjax.serve.refusal import Refusal
from dsjax.serve.text import END_THINK, THINK

SETTINGS, ALONE = "tokenizer_config.json", "chat_template.jinja"
RELEASED = "released"
REMEDY = "mend or remove it"
NONCHARACTERS = [chr(code) for code in range(0xFDD0, 0xFDF0)]
"""Code points that Unicode keeps free of meaning, one of which marks what a message said."""


class UnusableError(Exception):
    """A template that says no to the messages."""


@dataclass(frozen=True)
class Prompt:
    """A rendered conversation."""

    ids: list[int]
    is_thinking: bool
    """It ends with <think>: the answer begins with a thought."""


@dataclass(frozen=True)
class ChatTemplate:
    """A jinja template with the names of special tokens that it may use."""

    source: str
    names: Mapping[str, str]
    tokenizer: Tokenizer

    @property
    def has_thoughts(self) -> bool:
        """The model writes thoughts between <think> and </think>."""
        return END_THINK in self.source

    def prompt(self, messages: Sequence[Mapping[str, str]],
               kwargs: Mapping[str, Any] | None = None) -> Prompt:
        """Return the ids of a conversation, up to where the assistant speaks."""
        kwargs = kwargs or {}
        said = "".join(itertools.chain((m["content"] for m in messages), _texts(kwargs)))
        guard = next((mark for mark in NONCHARACTERS if not any(
            form in said for form in _forms(mark))), None)
        if guard is None:
            raise Refusal("messages hold every code point from U+FDD0 to U+FDEF, which are no "
                          "characters; take one of them out", "messages")
        guarded = [{**m, "content": self._guarded(m["content"], guard, _kept(m))} for m in messages]
        text = self.render(guarded, _each(kwargs, lambda text: self._guarded(text, guard)))
        is_thinking = text.rstrip().endswith(THINK)
        pieces = self._named.split(text)  # odd ones are names
        plain, escaped = _forms(guard)
        texts = [piece.replace(plain, "").replace(escaped, "") for piece in pieces[::2]]
        if texts == pieces[::2]:
            return Prompt(self.tokenizer.prompt(text, is_begun=False), is_thinking)
        of_texts = self.tokenizer.encode_batch(texts)
        of_names = [[self._ids[piece]] for piece in pieces[1::2]]
        joined = itertools.chain.from_iterable(itertools.zip_longest(of_texts, of_names,
                                                                     fillvalue=[]))
        return Prompt(list(itertools.chain.from_iterable(joined)), is_thinking)

    def render(self, messages: Sequence[Mapping[str, str]], kwargs: Mapping[str, Any],
               is_asked: bool = True) -> str:
        """Return the text of a conversation; refuses what the template refuses.

        is_asked: up to where the assistant speaks; otherwise it ends with the last message.
        """
        import jinja2

        for name in ("messages", "add_generation_prompt", *self.names):
            if name in kwargs:
                raise Refusal(f"chat_template_kwargs names {name!r}, which is not to be set; leave "
                              "it out", "chat_template_kwargs")
        try:
            return self._compiled.render({"tools": None, "documents": None, **self.names, **kwargs},
                                         messages=messages, add_generation_prompt=is_asked)
        except (jinja2.TemplateError, UnusableError, TypeError, ValueError, ArithmeticError,
                LookupError, AttributeError, RecursionError) as error:
            raise Refusal(f"the model's chat template cannot take these messages "
                          f"({str(error)[:200]}); change their roles or their order",
                          "messages") from None

    @cached_property
    def _compiled(self) -> Any:
        import jinja2

        try:
            return environment().from_string(self.source)
        except jinja2.TemplateError as error:
            raise disk.UserError(f"the chat template is not jinja ({error}); mend it in "
                                 f"{ALONE} or, where there is none, in {SETTINGS}") from None

    def check(self) -> None:
        """Refuse a template that is not jinja."""
        assert self._compiled is not None, "a template compiles or raises"

    @cached_property
    def _ids(self) -> dict[str, int]:
        added = self.tokenizer.core.get_added_tokens_decoder()
        return {token.content: i for i, token in added.items()}

    @cached_property
    def _named(self) -> re.Pattern[str]:
        return _any_of(self._ids)

    def _guarded(self, text: str, guard: str, kept: Sequence[str] = ()) -> str:
        """A text with the guard inside each name of an added token but the kept ones."""
        return self._named.sub(
            lambda found: found[0] if found[0] in kept else f"{found[0][0]}{guard}{found[0][1:]}",
            text)


def environment() -> Any:
    """Make the sandbox that a template is rendered in: jinja as transformers sets it up."""
    from jinja2 import nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """The block `generation`, which marks for training what the assistant says."""

        tags = {"generation"}  # noqa: RUF012 (jinja's own attribute)

        def parse(self, parser: Parser) -> nodes.Node:
            """Read up to endgeneration; the block is its body."""
            at = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body, lineno=at)

    def refuse(message: str) -> NoReturn:
        raise UnusableError(message)

    def to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None,
                separators: tuple[str, str] | None = None, sort_keys: bool = False) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators,
                          sort_keys=sort_keys)

    made = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True,
                                         extensions=[Generation, loopcontrols])
    made.filters["tojson"] = to_json
    made.globals["raise_exception"] = refuse
    made.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return made


def _kept(message: Mapping[str, str]) -> tuple[str, ...]:
    """Names in a message that are left to the template."""
    return (THINK, END_THINK) if message["role"] == "assistant" else ()


def _forms(mark: str) -> tuple[str, str]:
    """A mark as it is, and as JSON in ASCII writes it."""
    return mark, json.dumps(mark)[1:-1]


def _texts(value: Any) -> Iterator[str]:
    """Every text within JSON, names of fields too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list):
        parts = value if isinstance(value, list) else itertools.chain(*value.items())
        yield from itertools.chain.from_iterable(map(_texts, parts))


def _each(value: Any, change: Callable[[str], str]) -> Any:
    """JSON with each of its texts changed."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {_each(key, change): _each(held, change) for key, held in value.items()}
    return [_each(held, change) for held in value] if isinstance(value, list) else value


def _any_of(names: Any) -> re.Pattern[str]:
    longest_first = sorted(names, key=len, reverse=True)
    return re.compile(f"({'|'.join(map(re.escape, longest_first))})" if longest_first else "(?!)")


def load(folder: Path | str, tokenizer: Tokenizer) -> ChatTemplate | None:
    """Read the chat template that belongs to a folder's tokenizer; None if there is none."""
    for place in (Path(folder), Path(folder) / RELEASED):
        settings = {}
        if (place / SETTINGS).is_file():
            settings = disk.read_object(place / SETTINGS, REMEDY)
        source = _source(place, settings)
        if source is None:
            continue
        names = {key: name for key, value in settings.items() if key.endswith("_token")
                 and isinstance(name := _content(value), str)}
        template = ChatTemplate(source, names, tokenizer)
        template.check()
        return template
    return None


def _source(place: Path, settings: Mapping[str, Any]) -> str | None:
    """The text of a template: a file of its own, or a field, also one of several by name."""
    if (place / ALONE).is_file():
        return disk.read_bytes(place / ALONE, REMEDY).decode("utf-8-sig", errors="replace")
    found = settings.get("chat_template")
    if isinstance(found, list):
        by_name = {one.get("name"): one.get("template") for one in found if isinstance(one, dict)}
        found = by_name.get("default")
    if found is not None and not isinstance(found, str):
        raise disk.UserError(f"{place / SETTINGS} has a chat_template that is no text; {REMEDY}")
    return found


def _content(value: Any) -> Any:
    return value.get("content") if isinstance(value, dict) else value
