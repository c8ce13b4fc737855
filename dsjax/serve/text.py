"""Tokens become text as they come: whole characters, up to a stop string, thoughts set apart.

Special tokens have no text; where answers are scored, those that end none are told all the same.
Text that may begin a stop string is held back until it is known not to; a token is told with the
first of its characters, so that what a client has read is never taken back.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from dsjax.data.tokenizers.tokenizer import StreamDecoder, Tokenizer

THINK, END_THINK = "<think>", "</think>"

Top = tuple[tuple[int, float], ...]


class Vocabulary:
    """A tokenizer as answers show it: special tokens have no text, marks of thoughts have one."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        added = json.loads(tokenizer.source).get("added_tokens") or []
        special = {token["id"] for token in added
                   if token.get("special") and token["content"] not in (THINK, END_THINK)}
        self.hidden = frozenset(special | set(tokenizer.end_ids))
        self.longest = max(map(len, tokenizer.pieces))
        """Bytes of the longest token."""

    def bytes_of(self, token: int) -> bytes | None:
        """Return the bytes that a token stands for; None of a special one."""
        return None if token in self.hidden else self._piece(token)

    def name(self, token: int) -> str:
        r"""Return a token as text; `bytes:\xe2\x80` where it is no whole characters."""
        piece = self._piece(token)
        try:
            return piece.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)

    def _piece(self, token: int) -> bytes:
        """A token's bytes, a special one's name; nothing for ids that only the model knows."""
        pieces = self.tokenizer.pieces
        return pieces[token] if token < len(pieces) else b""


@dataclass(frozen=True)
class Scored:
    """A token of an answer with its log-probability, its rivals', and the place of its text."""

    token: int
    logprob: float
    top: Top
    start: int


@dataclass
class Delta:
    """A piece of an answer that has not been sent."""

    content: str = ""
    reasoning: str = ""
    scored: list[Scored] = field(default_factory=list)
    tokens: int = 0

    def __bool__(self) -> bool:
        return bool(self.content or self.reasoning or self.scored)


class Growing:
    """The text of one answer as it grows; `delta` holds what nobody has taken yet."""

    def __init__(self, vocabulary: Vocabulary, stops: Sequence[str] = (),
                 thoughts: Thoughts | None = None, keeps_scores: bool = False) -> None:
        self.delta = Delta()
        self.is_stopped = False
        """A stop string has ended the text."""
        self._vocabulary, self._decoder = vocabulary, StreamDecoder(vocabulary.tokenizer)
        self._stops, self._thoughts, self._keeps_scores = StopFinder(stops), thoughts, keeps_scores
        self._held: list[Scored] = []
        self._decoded = self._released = 0

    def push(self, token: int, logprob: float = 0.0, top: Top = ()) -> None:
        """Add a token; it must not be called any more once `is_stopped`."""
        self.delta.tokens += 1
        if self._keeps_scores and token not in self._vocabulary.tokenizer.end_ids:
            self._held.append(Scored(token, logprob, top, self._decoded))
        if token not in self._vocabulary.hidden:
            self._add(self._decoder.push(token))

    def end(self) -> None:
        """Release what was held back, unless a stop string came."""
        if not self.is_stopped:
            self._add(self._decoder.finish())
        if not self.is_stopped:
            self._release(self._stops.rest())
            self._tell(len(self._held))
        self._held.clear()
        if self._thoughts is not None:
            self._split(self._thoughts.rest())

    def take(self) -> Delta:
        """Return what came since the last call."""
        taken, self.delta = self.delta, Delta()
        return taken

    def _add(self, text: str) -> None:
        self._decoded += len(text)
        safe, self.is_stopped = self._stops.push(text)
        self._release(safe)

    def _release(self, text: str) -> None:
        self._released += len(text)
        if self._thoughts is None:
            self.delta.content += text
        else:
            self._split(self._thoughts.push(text))
        self._tell(sum(one.start < self._released for one in self._held))

    def _split(self, pieces: Iterator[tuple[bool, str]]) -> None:
        for is_thought, text in pieces:
            if is_thought:
                self.delta.reasoning += text
            else:
                self.delta.content += text

    def _tell(self, count: int) -> None:
        self.delta.scored += self._held[:count]
        del self._held[:count]


class StopFinder:
    """Passes text on up to the first stop string, which is cut off with all that follows.

    The first is the one that is complete first, however the text comes in pieces; of two that end
    together the longer.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops, self._held = tuple(stops), ""

    def push(self, text: str) -> tuple[str, bool]:
        """Return what is safe to show after more text, and whether a stop string came."""
        if not self._stops:
            return text, False
        seen = self._held + text
        found = [(at + len(stop), at) for stop in self._stops if (at := seen.find(stop)) >= 0]
        if found:
            self._held = ""
            return seen[: min(found)[1]], True
        hold = max(overlap(seen, stop) for stop in self._stops)
        self._held = seen[len(seen) - hold:]
        return seen[: len(seen) - hold], False

    def rest(self) -> str:
        """Return what was held back, at the end of the text."""
        held, self._held = self._held, ""
        return held


def overlap(text: str, mark: str) -> int:
    """The length of the longest end of a text that begins a mark without completing it."""
    longest = min(len(text), len(mark) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(mark[:n])), 0)


class Thoughts:
    """Splits an answer at <think> and </think>; the marks and blank lines after them are dropped.

    is_open: the prompt ended with <think>, so that the answer begins with a thought. Otherwise an
    answer that does not begin with <think> has none.
    """

    def __init__(self, is_open: bool) -> None:
        self._state = "thought" if is_open else "start"
        self._held, self._is_after_mark = "", is_open

    def push(self, text: str) -> Iterator[tuple[bool, str]]:
        """Yield (is a thought, text)."""
        text, self._held = self._held + text, ""
        if self._state == "start":
            begun = text.lstrip()
            if begun.startswith(THINK):
                self._state, self._is_after_mark, text = "thought", True, begun[len(THINK):]
            elif THINK.startswith(begun):
                self._held = text
                return
            else:
                self._state = "answer"
        if self._state == "thought":
            thought, mark, answer = text.partition(END_THINK)
            if not mark:
                hold = overlap(text, END_THINK)
                thought, self._held = text[: len(text) - hold], text[len(text) - hold:]
            yield True, self._trimmed(thought)
            if not mark:
                return
            self._state, self._is_after_mark, text = "answer", True, answer
        yield False, self._trimmed(text)

    def rest(self) -> Iterator[tuple[bool, str]]:
        """Yield what was held back, at the end of the text."""
        held, self._held = self._held, ""
        yield self._state == "thought", held

    def _trimmed(self, text: str) -> str:
        if self._is_after_mark:
            text = text.lstrip("\n")
            self._is_after_mark = not text
        return text
