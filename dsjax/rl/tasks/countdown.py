"""Countdown: reach a target from some numbers, each used once; many answers are right.

The game of Stream of Search (arXiv 2404.03683), as TinyZero has it: + - * / and brackets, exact
divisions alone count, all numbers are used. The rule evaluates the answer's own grammar; nothing
that Python would run is run.
"""

from __future__ import annotations

import re
from collections import Counter
from fractions import Fraction

import numpy as np

from dsjax.rl.tasks.task import Problem, Task

MOST_CHARACTERS = 200
"""Of an answer."""
MOST_TARGET = 100
_TOKENS = re.compile(r"[0-9]{1,3}|[-+*/()]")


def countdown(prompt: str, text: str, reference: str) -> float:
    """1 if what follows the output's only colon makes the target of the numbers: "3,5,2>17"."""
    _, mark, answer = text.partition(":")
    if not mark or len(answer) > MOST_CHARACTERS:
        return 0.0
    numbers, _, target = reference.partition(">")
    tokens = _TOKENS.findall(answer)
    used = Counter(int(token) for token in tokens if token.isdigit())
    if "".join(tokens) != answer or used != Counter(map(int, numbers.split(","))):
        return 0.0
    return float(value(tokens) == int(target))


def value(tokens: list[str]) -> Fraction | None:
    """Evaluate an expression; None if it is none, or divides by zero."""
    rest = list(reversed(tokens))
    try:
        found = _sum(rest)
    except (IndexError, ValueError, ZeroDivisionError, RecursionError):
        return None
    return None if rest else found


def _sum(rest: list[str]) -> Fraction:
    total = _product(rest)
    while rest and rest[-1] in "+-":
        total += _product(rest) if rest.pop() == "+" else -_product(rest)
    return total


def _product(rest: list[str]) -> Fraction:
    total = _atom(rest)
    while rest and rest[-1] in "*/":
        if rest.pop() == "*":
            total *= _atom(rest)
        else:
            total /= _atom(rest)
    return total


def _atom(rest: list[str]) -> Fraction:
    token = rest.pop()
    if token != "(":
        return Fraction(int(token))
    total = _sum(rest)
    if rest.pop() != ")":
        raise ValueError("a bracket is open")
    return total


def _draw(rng: np.random.Generator, level: int) -> Problem:
    """Combine numbers at random until one whole number of 1 to 100 is left: that is the target."""
    while True:
        numbers = rng.integers(1, 21, level).tolist()
        left = [(str(number), number) for number in numbers]
        steps = []
        while len(left) > 1:
            (one, a), (two, b) = (left.pop(rng.integers(0, len(left))) for _ in range(2))
            mark = str(rng.choice([m for m in "+-*/" if m != "/" or (b and a % b == 0)]))
            made = {"+": a + b, "-": a - b, "*": a * b, "/": a // (b or 1)}[mark]
            steps.append(f"{a}{mark}{b}={made}")
            left.append((f"({one}{mark}{two})", made))
        text, target = left[0]
        if 1 <= target <= MOST_TARGET and all("=-" not in step for step in steps):
            break
    stated = f"{','.join(map(str, numbers))}>{target}"
    return Problem(f"{stated}=", ";".join(steps), text[1:-1], (*sorted(numbers), target), stated)


COUNTDOWN = Task("countdown", "arXiv 2404.03683, TinyZero; the level is the number of numbers",
                 range(3, 7), _draw, rule="countdown")
