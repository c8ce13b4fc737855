"""Sums of digits modulo 10, and parities of bits, with short and long traces.

The form of "transformers, parity and length" (arXiv 2510.11495): where a base has seen short and
long responses, RL on the answer makes the long ones common. Digits stand two characters apart in
prompt and trace, so that what is copied is at a fixed distance:

    8+6+5+2+3+0+0+0=:4    8+6+5+2+3+0+0+0=8864592134040404:4

where the trace is each digit and the sum so far.
"""

from __future__ import annotations

import numpy as np

from dsjax.rl.tasks.task import Problem, Task


def running(digits: list[int], modulus: int) -> tuple[str, str]:
    """Return the trace, each digit and the sum so far, and the last sum."""
    sums = (np.cumsum(digits) % modulus).tolist()
    return "".join(f"{digit}{so_far}" for digit, so_far in zip(digits, sums)), str(sums[-1])


def _sum(rng: np.random.Generator, level: int) -> Problem:
    digits = rng.integers(0, 10, level).tolist()
    trace, answer = running(digits, 10)
    prompt = "+".join(map(str, digits)) + "="
    return Problem(prompt, trace, answer, tuple(sorted(digits)), answer)


def _parity(rng: np.random.Generator, level: int) -> Problem:
    bits = rng.integers(0, 2, level).tolist()
    trace, answer = running(bits, 2)
    return Problem("+".join(map(str, bits)) + "=", trace, answer, tuple(bits), answer)


SUM = Task("sum", "arXiv 2510.11495, modulo 10; the level is the number of digits", range(2, 33),
           _sum)
PARITY = Task("parity", "arXiv 2510.11495; the level is the number of bits", range(4, 65), _parity)
