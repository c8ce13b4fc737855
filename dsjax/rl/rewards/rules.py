"""Every rule by name, and a reward as a weighted sum of rules.

A rule that raises, takes too long, or returns what is no number, gives 0 for that output; the fault
is named and counted, so that a broken rule shows and NaN never looks like an advantage. A UserError
is the machine's fault and no output's (no sandbox, no math-verify): it ends the run.
"""

from __future__ import annotations

import ctypes
import math
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from dsjax.config.fields import did_you_mean
from dsjax.errors import UserError
from dsjax.rl.rewards import answers, code, language, sections
from dsjax.rl.tasks import countdown

Rule = Callable[[str, str, str], float]
"""(prompt, output, reference) -> reward."""


def in_format(prompt: str, text: str, reference: str) -> float:
    """1 for reasoning and answer in their tags: R1 report, sec. 2.2.2."""
    return float(sections.is_in_format(prompt, text))


RULES: dict[str, Rule] = {
    "format": in_format,
    "exact": answers.exact,
    "colon": answers.colon,
    "number": answers.number,
    "boxed": answers.boxed,
    "math": answers.math,
    "countdown": countdown.countdown,
    "code": code.code,
    "language": language.language,
}
VOTES: dict[str, Callable[[str, str], str | None]] = {
    "exact": sections.answer,
    "colon": answers.after_colon,
    "number": answers.in_digits,
    "boxed": answers.in_box,
    "math": answers.in_normal_form,
}
"""By rule, the answer that it reads of (prompt, output), in a form in which equal ones are equal
texts: a majority is counted of these. Programs and expressions have none."""
SECONDS = 60.0
"""Of a rule for one output; far more than comparisons and programs are given by their own limits.
A rule that loops in Python is stopped, one that waits in C (a regular expression) is waited for."""
R1_ZERO = {"math": 1.0, "format": 1.0}
"""Accuracy and format, of equal weight: R1 report, sec. 2.2.2."""
R1_REASONING = R1_ZERO | {"language": 1.0}
"""With language consistency added: R1 report, sec. 2.3.2."""


@dataclass(frozen=True)
class Scored:
    """The reward of one output."""

    total: float
    parts: Mapping[str, float]
    """Of each rule, before its weight."""
    faults: Mapping[str, str]
    """By rule, the error of one that failed on this output and gave 0."""


def find(name: str) -> Rule:
    """Return the rule of a name; refuses another."""
    if name in RULES:
        return RULES[name]
    raise UserError(f"there is no reward rule {name[:60]!r}{did_you_mean(name, RULES)}; choose "
                    f"from {', '.join(sorted(RULES))}")


def score(rules: Mapping[str, float], prompt: str, text: str, reference: str) -> Scored:
    """Score one output by rules and their weights.

    An output that was cut off is scored as it stands; whoever sampled it knows, and counts it out
    (dsjax.rl.objective.weights.counted) or gives it nothing.
    """
    parts, faults = {}, {}
    for name, rule in _checked(rules).items():
        parts[name], fault = _guarded(rule, prompt, text, reference)
        if fault:
            faults[name] = fault
    return Scored(math.fsum(rules[name] * parts[name] for name in rules), parts, faults)


def score_all(rules: Mapping[str, float], rows: Iterable[tuple[str, str, str]],
              workers: int = 2) -> list[Scored]:
    """Score rows of (prompt, output, reference), several at a time, in their order."""
    _checked(rules)
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(lambda row: score(rules, *row), rows))


def faults(scored: Iterable[Scored]) -> Counter[str]:
    """Count the outputs on which each rule failed."""
    return Counter(name for one in scored for name in one.faults)


def _checked(rules: Mapping[str, float]) -> dict[str, Rule]:
    found = {name: find(name) for name in rules}
    for name, weight in rules.items():
        if not math.isfinite(weight):
            raise UserError(f"the weight of reward rule {name} is {weight}; use a number")
    return found


def _guarded(rule: Rule, prompt: str, text: str, reference: str) -> tuple[float, str]:
    """The value of a rule, and how it failed, if it did."""
    ended: list[float | Exception] = []

    def work() -> None:
        try:
            ended.append(float(rule(prompt, text, reference)))
        except Exception as error:
            ended.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(SECONDS)
    if not ended:
        if thread.ident is not None:
            ctypes.pythonapi.PyThreadState_SetAsyncExc(
                ctypes.c_ulong(thread.ident), ctypes.py_object(TimeoutError))
        return 0.0, f"TimeoutError: it took more than {SECONDS:g} seconds"
    (value,) = ended
    if isinstance(value, UserError):
        raise value
    if isinstance(value, Exception):
        return 0.0, f"{type(value).__name__}: {value}".split("\n")[0][:300]
    return (value, "") if math.isfinite(value) else (0.0, f"it returned {value}")
