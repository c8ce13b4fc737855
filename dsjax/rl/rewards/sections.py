"""Reasoning and answer of an output, by the tags of R1-Zero's template, and boxes.

R1 report, table 1: "<think> reasoning process here </think> <answer> answer here </answer>". A
prompt that ends in <think> has opened the reasoning already (DeepSeek-R1's README). Where tags are
missing, doubled, nested or out of order there is no telling what the answer is, and there is none.
"""

from __future__ import annotations

import re

THINK, END_THINK, ANSWER, END_ANSWER = TAGS = ("<think>", "</think>", "<answer>", "</answer>")
_BRACES = re.compile(r"\\(?:boxed|fbox)\s*\{|\\[\\{}]|[{}]")


def is_in_format(prompt: str, text: str) -> bool:
    """True for reasoning and answer in their tags, each once, neither blank, nothing beside."""
    whole = _whole(prompt, text).strip()
    if any(whole.count(tag) != 1 for tag in TAGS):
        return False
    before, _, rest = whole.partition(THINK)
    thought, _, rest = rest.partition(END_THINK)
    between, _, rest = rest.partition(ANSWER)
    answer, end, after = rest.partition(END_ANSWER)
    return bool(end and thought.strip() and answer.strip()) and not (
        before or between.strip() or after)


def reasoning(prompt: str, text: str) -> str:
    """The text between the think tags, to the end where they do not close; all without them."""
    whole = _whole(prompt, text)
    return whole.partition(THINK)[2].partition(END_THINK)[0] if THINK in whole else whole


def final(prompt: str, text: str) -> str | None:
    """The text after the reasoning; all of it without think tags; None if they are not one pair."""
    whole = _whole(prompt, text)
    opened, closed = whole.count(THINK), whole.count(END_THINK)
    if not opened and not closed:
        return whole
    if opened != 1 or closed != 1 or whole.find(THINK) > whole.find(END_THINK):
        return None
    return whole.partition(END_THINK)[2]


def answer(prompt: str, text: str) -> str | None:
    """The text of the one answer after the reasoning, stripped; None without, and of several."""
    rest = final(prompt, text)
    if rest is None or rest.count(ANSWER) != 1 or rest.count(END_ANSWER) != 1:
        return None
    inner, end, _ = rest.partition(ANSWER)[2].partition(END_ANSWER)
    return inner.strip() if end else None


def boxes(text: str) -> list[str]:
    r"""Contents of the outermost \boxed{...} and \fbox{...} of a text, in one pass over it."""
    found: list[str] = []
    open_: list[tuple[bool, int]] = []  # (is a box, where it begins) of each brace not yet closed
    depth = 0  # boxes among them
    for brace in _BRACES.finditer(text):
        if brace[0] == "}":
            if open_:
                is_box, begins = open_.pop()
                depth -= is_box
                if is_box and not depth:
                    found.append(text[begins : brace.start()].strip())
        elif brace[0] == "{" or len(brace[0]) > 2:
            open_.append((len(brace[0]) > 1, brace.end()))
            depth += len(brace[0]) > 1
    return found


def _whole(prompt: str, text: str) -> str:
    return THINK + text if prompt.rstrip().endswith(THINK) else text
