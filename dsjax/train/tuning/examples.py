"""Examples of a file: token ids, and which of them are learned.

A line has `prompt` and `completion`, taken as they are; `question` and `answer`; or `messages`, a
conversation. A completion is followed by the end token, which is learned with it. Prompt and
completion become ids apart, as a model that is asked sees its prompt.

A conversation is what the checkpoint's chat template makes of it, and an answer is learned after
exactly the ids that a server would ask it with: those of the messages before it. As long as the
next question's ids begin with all that has been so far, it is one example; where a template changes
what came earlier (R1's drops thoughts), the next answer is an example of its own.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from dsjax.config.sft import SFTConfig
from dsjax.data.tokenizers.tokenizer import Tokenizer
from dsjax.errors import UserError
from dsjax.evaluate.tasks import rows
from dsjax.evaluate.tasks.rows import Row
from dsjax.serve import template
from dsjax.serve.refusal import Refusal
from dsjax.serve.template import ChatTemplate, Prompt
from dsjax.serve.text import END_THINK, THINK

MEND = "mend the line or take it out"
MARK = "\ufdd0"
"""A code point that no text has, to find what a template writes after an answer."""
ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Example:
    """Ids and, for each, whether it is learned."""

    ids: list[int]
    is_learned: list[bool]


@dataclass(frozen=True)
class Found:
    """Examples of a file, each of which fits a row."""

    examples: tuple[Example, ...]
    cut: int
    """Those whose end was cut off."""
    dropped: int
    """Those that were left out, as they are too long."""
    form: str
    """Kind of lines, as it is said."""


def read(path: Path, words: Tokenizer, chat: ChatTemplate | None, cfg: SFTConfig,
         length: int) -> Found:
    """Read the examples of a file for rows of `length` targets.

    Raises:
        UserError: a line lacks a field, has an empty answer, is another kind of line than the first
            or too long, or there is no chat template for its messages; by its number.
    """
    if not path.is_file():
        raise UserError(f"there is no file {path} of examples; give one with lines of JSON "
                        f"({', '.join(rows.ENDINGS)})")
    lines = rows.read(path)
    make, form = _reader(lines[0], words, chat)
    made: list[Example] = []
    cut = dropped = 0
    for row in lines:
        for example in make(row):
            if len(example.ids) > length + 1:
                if cfg.long == "refuse":
                    raise UserError(
                        f"{row.where} makes an example of {len(example.ids)} tokens, and a row has "
                        f"room for {length + 1}; use --train.seq-len {len(example.ids) - 1} or "
                        "more, or --sft.long cut or drop")
                example = Example(example.ids[: length + 1], example.is_learned[: length + 1])
                if cfg.long == "drop" or not any(example.is_learned):
                    dropped += 1
                    continue
                cut += 1
            made.append(example)
    if not made:
        raise UserError(f"all examples of {path} are longer than a row of {length + 1} tokens; use "
                        "a larger --train.seq-len")
    return Found(tuple(made), cut, dropped, form)


def _reader(first: Row, words: Tokenizer, chat: ChatTemplate | None
            ) -> tuple[Callable[[Row], Iterator[Example]], str]:
    """The function that makes examples of lines like the first, and what it is called."""
    if "messages" in first:
        if chat is None:
            raise UserError(f"{first.where} has messages, and the checkpoint has no chat template; "
                            "put its tokenizer_config.json beside its tokenizer.json, or give "
                            "prompt and completion")
        return lambda row: conversation(_messages(row), words, chat, row.where), \
            "messages, by the checkpoint's chat template"
    if "prompt" in first:
        return lambda row: iter([plain(row.any_text("prompt"), row.text("completion"), words)]), \
            "prompts and completions as they are"
    if "question" in first:
        if chat is None:
            return lambda row: iter([plain(f"Question: {row.text('question')}\nAnswer:",
                                           f" {row.text('answer')}", words)]), \
                "questions and answers as plain text (the checkpoint has no chat template)"
        return lambda row: conversation(
            [{"role": "user", "content": row.text("question")},
             {"role": "assistant", "content": row.text("answer")}], words, chat, row.where), \
            "questions and answers, by the checkpoint's chat template"
    has = ", ".join(sorted(map(str, first.fields)))[:200] or "none"
    raise UserError(f"{first.where} is no example, its fields are {has}; give prompt and "
                    "completion, question and answer, or messages")


def plain(prompt: str, completion: str, words: Tokenizer) -> Example:
    """A prompt, and a completion that is learned, end token included."""
    asked = words.prompt(prompt) or [words.end_id]  # something must stand before the first token
    said = [*words.encode(completion), words.end_id]
    return Example(asked + said, [False] * len(asked) + [True] * len(said))


def conversation(messages: list[Mapping[str, str]], words: Tokenizer, chat: ChatTemplate,
                 where: str) -> Iterator[Example]:
    """The examples that a conversation's answers make; see the head of this file."""
    close = closing(chat, words)
    ids: list[int] = []
    learned: list[bool] = []
    for at, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        try:
            asked = chat.prompt(messages[:at])
        except Refusal as error:
            raise UserError(f"{where}: {error}") from None
        said = [*_answer(message["content"], asked, words, where), close]
        if asked.ids[: len(ids)] != ids:
            yield Example(ids, learned)
            ids, learned = [], []
        learned += [False] * (len(asked.ids) - len(ids)) + [True] * len(said)
        ids = asked.ids + said
    yield Example(ids, learned)


def _answer(content: str, asked: Prompt, words: Tokenizer, where: str) -> list[int]:
    """Ids of an answer; where the prompt opens a thought, the answer goes on with it."""
    if asked.is_thinking:
        content = content.lstrip().removeprefix(THINK).removeprefix("\n")
        if END_THINK not in content:
            raise UserError(f"{where}: the chat template opens a thought, and the answer has no "
                            f"{END_THINK}; write the thought before it, or an empty one")
    vocab = {token.content: i for i, token in words.core.get_added_tokens_decoder().items()}
    ids: list[int] = []
    for mark, part in _marked(content, (THINK, END_THINK)):
        ids += [vocab[part]] if mark and part in vocab else words.encode(part)
    return ids


def _marked(text: str, marks: tuple[str, ...]) -> Iterator[tuple[bool, str]]:
    """Cut a text at some marks: (is it one, part)."""
    if not marks:
        yield from [(False, text)] if text else []
        return
    first, *others = marks
    for i, part in enumerate(text.split(first)):
        if i:
            yield True, first
        yield from _marked(part, tuple(others))


def closing(chat: ChatTemplate, words: Tokenizer) -> int:
    """Id of the token that a template closes an answer with: the first special one after it."""
    try:
        text = chat.render([{"role": "user", "content": "a"},
                            {"role": "assistant", "content": MARK}], {}, is_asked=False)
    except Refusal:
        return words.end_id
    after = text.rpartition(MARK)[2] if MARK in text else ""
    added = words.core.get_added_tokens_decoder()
    found = [(after.index(token.content), i) for i, token in added.items()
             if token.content in after]
    return min(found)[1] if found else words.end_id


def _messages(row: Row) -> list[Mapping[str, str]]:
    """The conversation of a line, which ends with an answer."""
    said = row.fields["messages"]
    if not isinstance(said, list) or not said:
        raise UserError(f"{row.where} has no list of messages in field 'messages'; {MEND}")
    for number, message in enumerate(said, 1):
        is_good = isinstance(message, dict) and message.get("role") in ROLES and isinstance(
            message.get("content"), str)
        if not is_good:
            raise UserError(f"{row.where}, message {number}, is no object with a role of "
                            f"{', '.join(ROLES)} and a content that is a text; {MEND}")
        if message["role"] == "assistant" and not message["content"].strip():
            raise UserError(f"{row.where}, message {number}, is an empty answer; {MEND}")
        whole = message["content"]
        if not whole.isascii() and any("\ud800" <= letter <= "\udfff" for letter in whole):
            raise UserError(f"{row.where}, message {number}, has half of a surrogate pair, which "
                            f"is no character; {MEND}")
    if said[-1]["role"] != "assistant":
        raise UserError(f"{row.where} ends with a message of {said[-1]['role']}, after which "
                        "nothing is learned; end it with one of assistant")
    return said


def template_of(folder: Path | str, words: Tokenizer) -> ChatTemplate | None:
    """The chat template of a run or a release, or of what a run was made from."""
    return template.load(folder, words)


def sizes(found: Found) -> tuple[int, int]:
    """Tokens of some examples, and those of them that are learned."""
    return (sum(len(one.ids) for one in found.examples),
            sum(itertools.chain.from_iterable(one.is_learned for one in found.examples)))
