"""Addition from either end, and multiplication by parts.

Reversed digits make addition learnable to small models (arXiv 2307.03381): every digit of the
answer follows from what stands before it. Numbers have as many digits as the level, zeros in front.
"""

from __future__ import annotations

import numpy as np

from dsjax.rl.tasks.task import Problem, Task


def _pair(rng: np.random.Generator, level: int) -> tuple[int, int]:
    a, b = rng.integers(0, 10**level, 2).tolist()
    return a, b


def columns(a: int, b: int, level: int) -> str:
    """Trace of an addition from the last digit on: both digits, the sum's digit, the carry."""
    parts, carry = [], 0
    for _ in range(level):
        (a, x), (b, y) = divmod(a, 10), divmod(b, 10)
        carry, digit = divmod(x + y + carry, 10)
        parts.append(f"{x}{y}{digit}{carry}")
    return "".join(parts)


def _addition(rng: np.random.Generator, level: int) -> Problem:
    a, b = _pair(rng, level)
    answer = f"{a + b:0{level + 1}d}"
    prompt = f"{a:0{level}d}+{b:0{level}d}="
    return Problem(prompt, columns(a, b, level), answer, tuple(sorted((a, b))), answer)


def _reversed(rng: np.random.Generator, level: int) -> Problem:
    a, b = _pair(rng, level)
    answer = f"{a + b:0{level + 1}d}"[::-1]
    prompt = f"{a:0{level}d}"[::-1] + "+" + f"{b:0{level}d}"[::-1] + "="
    return Problem(prompt, columns(a, b, level), answer, tuple(sorted((a, b))), answer)


def _multiplication(rng: np.random.Generator, level: int) -> Problem:
    """Parts: a times each digit of b at its place, and the sum so far, 12*4=48,48;12*30=360,408."""
    a, b = _pair(rng, level)
    parts, total = [], 0
    for place, digit in enumerate(reversed(f"{b:0{level}d}")):
        part = int(digit) * 10**place
        total += a * part
        parts.append(f"{a}*{part}={a * part},{total}")
    answer = str(total)
    return Problem(f"{a}*{b}=", ";".join(parts), answer, tuple(sorted((a, b))), answer)


ADDITION = Task("addition", "the level is the number of digits", range(2, 17), _addition)
REVERSED = Task("reversed_addition", "arXiv 2307.03381; the level is the number of digits",
                range(2, 17), _reversed)
MULTIPLICATION = Task("multiplication", "the level is the number of digits", range(2, 9),
                      _multiplication)
