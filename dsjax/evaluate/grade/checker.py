"""A check of a program: it runs in another process than the program and calls it by value.

What is expected never reaches the program: a call takes its arguments there and brings the result
back. The comparison is made here, between values of Python's own types, so that no object that
equals everything, no patched `assert`, no exit status and no frame that is looked into makes a
wrong answer right.
"""

from __future__ import annotations

import builtins
from collections.abc import Iterator
from typing import Any

from dsjax.evaluate.grade import wire
from dsjax.evaluate.grade.candidate import describe

GONE = "the program has ended"


class GoneError(BaseException):
    """The program ended, or wrote what is no answer; no check catches that as a failed call."""


class Link:
    """Requests to a program and its answers."""

    def __init__(self, answers: int, requests: int) -> None:
        self._answers, self._requests = answers, requests
        self._known: dict[int, Remote] = {}

    def wait(self) -> None:
        """Return when the program has run to its end."""
        self._receive()

    def ask(self, what: str, on: Any, *given: Any) -> Any:
        """Return what the program answers, or raise what it raised."""
        message = [wire.encode(part, _number) for part in (what, on, *given)]
        try:
            wire.send(self._requests, message)
        except OSError as error:
            raise GoneError(GONE) from error
        said = self._receive()
        if "raised" in said:
            raise _raised(said)
        return wire.decode(said["value"], self._object)

    def _object(self, number: int) -> Remote:
        return self._known.setdefault(number, Remote(self, number))

    def _receive(self) -> dict[str, Any]:
        try:
            said = wire.receive(self._answers)
        except (wire.ClosedError, OSError, ValueError) as error:
            raise GoneError(GONE) from error
        if not isinstance(said, dict):
            raise GoneError("the program wrote what is no answer")
        return said


class Remote:
    """An object that stays with the program; equal to itself alone."""

    __slots__ = ("_link", "_number")

    def __init__(self, link: Link, number: int) -> None:
        object.__setattr__(self, "_link", link)
        object.__setattr__(self, "_number", number)

    def __call__(self, *given: Any, **named: Any) -> Any:
        """Call it with copies of the arguments."""
        return self._link.ask("call", self, list(given), named)

    def __getattr__(self, name: str) -> Any:
        return self._link.ask("get", self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._link.ask("set", self, name, value)

    def __iter__(self) -> Iterator[Any]:
        return self._link.ask("iterate", self)

    def __next__(self) -> Any:
        return self._link.ask("next", self)


def run(given: str, asks: list[str], text: str, link: Link) -> str | None:
    """Run a check; return how it failed, or None.

    given: what stands in the check's scope before it, as a prompt's imports and helpers.
    asks: names that it takes from the program.
    """
    scope: dict[str, Any] = {}
    try:
        exec(compile(given, "<given>", "exec", dont_inherit=True, optimize=0), scope)
        link.wait()
        for name in asks:
            scope.pop(name, None)
            try:
                scope[name] = link.ask("name", name)
            except KeyError:  # the check says so where it uses it
                continue
        exec(compile(text, "<check>", "exec", dont_inherit=True, optimize=0), scope)
    except GoneError as error:
        return str(error)
    except BaseException as error:
        return describe(error)
    return None


def _number(value: Any) -> int:
    if isinstance(value, Remote):
        return object.__getattribute__(value, "_number")
    raise TypeError(f"a check gives data to the program, and no {type(value).__name__}")


def _raised(said: dict[str, Any]) -> BaseException:
    """An error of the nearest of Python's own kinds."""
    for name in said["raised"]:
        kind = getattr(builtins, str(name), None)
        if isinstance(kind, type) and issubclass(kind, Exception):
            return _plain(kind, str(said.get("error")))
    return GoneError(str(said.get("error")))


def _plain(kind: type[Exception], text: str) -> Exception:
    try:
        return kind(text)
    except TypeError:  # such as UnicodeDecodeError, which takes five
        return RuntimeError(text)
