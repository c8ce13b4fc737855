"""Chains modulo 10, sorting, and formulas of logic: each step follows from the one before."""

from __future__ import annotations

import numpy as np

from dsjax.rl.tasks.task import Problem, Task

_APPLY = {"+": lambda x, y: (x + y) % 10, "-": lambda x, y: (x - y) % 10,
          "*": lambda x, y: x * y % 10}
_LOGIC = {"&": min, "|": max}


def _chain(rng: np.random.Generator, level: int) -> Problem:
    """From left to right, as 3+4*2=: the trace is the value after each step, 74."""
    value = int(rng.integers(0, 10))
    prompt, trace = str(value), ""
    for _ in range(level):
        mark, operand = "+-*"[rng.integers(0, 3)], int(rng.integers(0, 10))
        value = _APPLY[mark](value, operand)
        prompt, trace = f"{prompt}{mark}{operand}", f"{trace}{value}"
    return Problem(f"{prompt}=", trace, str(value), (prompt,), str(value))


def _sorting(rng: np.random.Generator, level: int) -> Problem:
    """Digits in order; the trace is what is sorted after each, as 529: 5;25;259."""
    digits = rng.integers(0, 10, level).tolist()
    states = ["".join(map(str, sorted(digits[: i + 1]))) for i in range(level)]
    prompt = "".join(map(str, digits)) + ">="
    return Problem(prompt, ";".join(states), states[-1], tuple(sorted(digits)), states[-1])


def _logic(rng: np.random.Generator, level: int) -> Problem:
    """A formula in brackets, as ((1&0)|!1)=; the trace is the value of each bracket, as they close.
    """
    def formula(operators: int) -> tuple[str, int, str]:
        if operators == 0:
            bit, is_negated = (int(one) for one in rng.integers(0, 2, 2))
            return ("!" if is_negated else "") + str(bit), bit ^ is_negated, ""
        mark, first = "&|"[rng.integers(0, 2)], int(rng.integers(0, operators))
        (left, a, one), (right, b, two) = formula(first), formula(operators - 1 - first)
        value = _LOGIC[mark](a, b)
        return f"({left}{mark}{right})", value, f"{one}{two}{value}"

    text, value, trace = formula(level)
    return Problem(f"{text}=", trace, str(value), (text,), str(value))


CHAIN = Task("chain", "the level is the number of steps", range(2, 33), _chain)
SORTING = Task("sorting", "the level is the number of digits", range(3, 17), _sorting)
LOGIC = Task("logic", "the level is the number of operators", range(2, 17), _logic)
