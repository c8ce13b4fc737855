"""A program behind walls: it runs once, then answers calls of its functions, as values.

What runs here shares its process with the program, which may therefore say anything in its place.
It holds no secret and decides nothing: a false answer is a false answer.
"""

from __future__ import annotations

import contextlib
import sys
from typing import Any

from dsjax.evaluate.grade import wire


def run(program: str, scope: dict[str, Any]) -> str | None:
    """Run a program in an empty scope, as openai/human-eval does; return how it failed, if it did.

    `__name__` is "builtins" in such a scope, so that code for `__main__` does not run.
    """
    try:
        exec(compile(program, "<program>", "exec", dont_inherit=True, optimize=0), scope)
    except BaseException as error:
        return describe(error)
    finally:
        _flush()
    return None


def describe(error: BaseException) -> str:
    """Name an error and say it, in one short line."""
    with contextlib.suppress(Exception):
        return f"{type(error).__name__}: {error}".split("\n")[0][:300]
    return type(error).__name__


def serve(scope: dict[str, Any], requests: int, answers: int) -> None:
    """Answer requests for what a program left in its scope until nobody asks any more."""
    kept: list[Any] = []
    numbers: dict[int, int] = {}

    def keep(value: Any) -> int:
        if id(value) not in numbers:
            numbers[id(value)] = len(kept)
            kept.append(value)
        return numbers[id(value)]

    while True:
        message = wire.receive(requests)
        try:
            said = {"value": wire.encode(_do(message, scope, kept), keep)}
        except BaseException as error:
            bases = [base.__name__ for base in type(error).__mro__]
            said = {"raised": bases, "error": describe(error)}
        _flush()
        wire.send(answers, said)


def _flush() -> None:
    with contextlib.suppress(Exception):
        sys.stdout.flush()


def _do(message: list[Any], scope: dict[str, Any], kept: list[Any]) -> Any:
    what, on, *given = [wire.decode(part, kept.__getitem__) for part in message]
    if what == "name":
        return scope[on]
    if what == "call":
        return on(*given[0], **given[1])
    if what == "get":
        return getattr(on, *given)
    if what == "set":
        return setattr(on, *given)
    return iter(on) if what == "iterate" else next(on)
