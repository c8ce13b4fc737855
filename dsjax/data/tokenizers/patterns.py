r"""Regular expressions of a tokenizer.json: those that are run, as their time cannot explode.

A file from elsewhere may hold a pattern that takes hours for a line of text: `(x+x+)+y` doubles its
steps with every x. All released byte-level tokenizers repeat single characters and classes only,
so that much is taken and the rest is refused by structure: no repeat of a group that can match in
several ways, at most `OPEN` open repeats and `OPTIONAL` optional parts in one alternative, no
references. What is left is polynomial; `slow_text` times it on texts of one repeated piece.

Limit: a pattern that is slow only for texts that `slow_text` does not try passes; the library then
gives up after ten million steps in one place, and `tokenizer` says so.
"""

import re
import time
from collections.abc import Callable
from dataclasses import dataclass

LENGTH, DEPTH, SIZE = 16_384, 50, 20_000
OPEN, OPTIONAL = 3, 8
TRIES, SECONDS = (60, 120, 250, 500, 1000), 0.1
_QUANTIFIER = re.compile(r"(?:[*+?]|\{(?:\d+(?:,\d*)?|,\d+)\})")
_GROUP = re.compile(r"\?(?::|=|!|<=|<!|>|<[A-Za-z_]\w*>|[imxWDSPa-]*:)")
_OPTIONS = re.compile(r"\?[imxWDSPa-]+\)")
_ESCAPE = re.compile(r"\\(?:[pP]\{[^}]*\}|x\{[^}]*\}|x[0-9A-Fa-f]{1,2}|u[0-9A-Fa-f]{4}|.)", re.S)
_REFERENCE = re.compile(r"\\(?:[1-9]|k[<']|g[<'])")


@dataclass
class _Part:
    """Ways in which a piece of a pattern can match: open repeats, optional parts, atoms, choice."""

    open: int = 0
    optional: int = 0
    size: int = 0
    is_choice: bool = False

    def add(self, other: "_Part") -> None:
        """Put another piece behind this one."""
        self.open += other.open
        self.optional += other.optional
        self.size += other.size
        self.is_choice |= other.is_choice


class _RefusalError(ValueError):
    """The reason for a refusal."""


def refusal(pattern: str) -> str | None:
    """Return why a pattern is not run, in a few words; None where it is."""
    if len(pattern) > LENGTH:
        return f"it has {len(pattern):,} characters, above {LENGTH:,}"
    if _REFERENCE.search(pattern.replace("\\\\", "")):
        return "it refers to a group"
    try:
        _Reader(pattern).alternatives(0)
    except _RefusalError as error:
        return str(error)
    except IndexError:
        return None  # not a whole pattern: the library says where
    return None


def slow_text(split: Callable[[str], object], patterns: list[str]) -> str | None:
    """Return a piece of which a thousand characters take `split` too long, or None."""
    letters = set("aA0 \n\r\t!_\x01\u00e9\u0301\u3042\u4e00\U0001f642").union(*patterns)
    runs = {run for pattern in patterns for run in re.findall(r"[A-Za-z0-9]{2,8}", pattern)}
    for piece in sorted(letters)[:256] + sorted(runs)[:64]:
        for length in TRIES:
            text = (piece * length)[:length] + "\x00"
            if all(_takes(split, text) > SECONDS for _ in range(3)):  # once may be the machine
                return piece
    return None


def _takes(split: Callable[[str], object], text: str) -> float:
    began = time.thread_time()
    split(text)
    return time.thread_time() - began


class _Reader:
    """Reads a pattern of Oniguruma's syntax once, from left to right."""

    def __init__(self, pattern: str):
        self._text, self._at = pattern, 0

    def alternatives(self, depth: int) -> _Part:
        """Read up to the closing parenthesis or the end; the worst of the alternatives."""
        if depth > DEPTH:
            raise _RefusalError(f"its groups are nested more than {DEPTH} deep")
        found = [self._sequence(depth)]
        while self._peek() == "|":
            self._at += 1
            found.append(self._sequence(depth))
        if self._peek() and not depth:
            raise IndexError  # a parenthesis too many
        worst = _Part(max(p.open for p in found), max(p.optional for p in found),
                      sum(p.size for p in found), any(p.is_choice for p in found))
        if len(found) > 1:
            worst.is_choice, worst.optional = True, worst.optional + bool(depth)
        if worst.size > SIZE:
            raise _RefusalError(f"it stands for more than {SIZE:,} characters")
        return worst

    def _sequence(self, depth: int) -> _Part:
        whole = _Part()
        while self._peek() not in ("", "|", ")"):
            whole.add(self._quantified(self._atom(depth)))
        if whole.open > OPEN or whole.optional > OPTIONAL:
            raise _RefusalError(f"it has {whole.open} open repeats and {whole.optional} optional "
                                f"parts in a row, above {OPEN} and {OPTIONAL}")
        return whole

    def _atom(self, depth: int) -> _Part:
        text = self._text
        if text[self._at] == "\\":
            self._at = self._match(_ESCAPE)
        elif text[self._at] == "[":
            self._class()
        elif text[self._at] == "(":
            return self._group(depth)
        else:
            self._at += 1
        return _Part(size=1)

    def _group(self, depth: int) -> _Part:
        self._at += 1
        if options := _OPTIONS.match(self._text, self._at):
            self._at = options.end()
            return _Part()
        if self._peek() == "?":
            opened = _GROUP.match(self._text, self._at)
            if opened is None:
                raise _RefusalError(f"it has a group {self._text[self._at - 1:self._at + 3]!r}")
            self._at = opened.end()
        inside = self.alternatives(depth + 1)
        if self._text[self._at] != ")":
            raise IndexError
        self._at += 1
        return inside

    def _class(self) -> None:
        """A set of characters, in which sets may be nested."""
        depth = 0
        while True:
            here = self._text[self._at]
            if here == "\\":
                self._at = self._match(_ESCAPE)
                continue
            depth += (here == "[") - (here == "]")
            self._at += 1
            if not depth:
                return

    def _quantified(self, part: _Part) -> _Part:
        """A part with the quantifiers behind it; `*+`, `++` and `?+` give nothing back."""
        while found := _QUANTIFIER.match(self._text, self._at):
            self._at = found.end()
            is_plain = found[0] in "*+?"
            if is_plain and self._peek() == "+":
                self._at += 1
                if part.size == 1 and not part.open and not part.optional:
                    continue
            elif self._peek() == "?":  # as few as possible: just as many ways
                self._at += 1
            part = _repeated(part, *_bounds(found[0]))
        return part

    def _match(self, kind: re.Pattern[str]) -> int:
        found = kind.match(self._text, self._at)
        if found is None:
            raise IndexError
        return found.end()

    def _peek(self) -> str:
        return self._text[self._at : self._at + 1]


def _bounds(quantifier: str) -> tuple[int, int | None]:
    if quantifier in "*+?":
        return {"*": (0, None), "+": (1, None), "?": (0, 1)}[quantifier]
    low, comma, high = quantifier[1:-1].partition(",")
    least = int(low[:9] or 0)
    return least, (int(high[:9]) if high else None) if comma else least


def _repeated(part: _Part, least: int, most: int | None) -> _Part:
    if most == 1:
        return _Part(part.open, part.optional + (least == 0), part.size, part.is_choice)
    if part.open or part.optional or part.is_choice:
        raise _RefusalError("it repeats a group that matches in several ways")
    times = max(1, least if most is None else most)
    if part.size * times > SIZE:
        raise _RefusalError(f"it stands for more than {SIZE:,} characters")
    return _Part(open=int(most != least), size=part.size * times)
