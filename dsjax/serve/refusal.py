"""A refused request: a status and OpenAI's error object, whose message has cause and remedy.

Messages quote little of what a client sent, and never all of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

QUOTED = 60
"""Characters of a client's value that a message repeats."""

TYPES = {401: "authentication_error", 404: "invalid_request_error", 429: "rate_limit_error",
         500: "server_error", 503: "server_error"}


class Refusal(Exception):  # noqa: N818 (an answer, not a fault of the program)
    """Raised anywhere between a body and its answer; the app turns it into a response."""

    def __init__(self, message: str, param: str | None = None, code: str | None = None,
                 status: int = 400, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.message, self.param, self.code, self.status = message, param, code, status
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """The error object as OpenAI's clients read it."""
        kind = TYPES.get(self.status, "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param,
                          "code": self.code}}


def busy(message: str, wait_s: float = 1.0) -> Refusal:
    """Refuse for now: 503, with the seconds after which to ask again."""
    return Refusal(message, code="overloaded", status=503,
                   headers={"Retry-After": str(max(1, math.ceil(wait_s)))})


def quoted(value: object) -> str:
    """A client's value in a sentence."""
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 200:
        return f"a whole number of {value.bit_length():,} bits"
    if isinstance(value, list | dict) and len(value) > QUOTED:
        return f"{kind(value)} of {len(value):,}"
    text = repr(value) if not isinstance(value, list | dict) else str(value)
    return text if len(text) <= QUOTED else f"{text[:QUOTED]}..."


def kind(value: object) -> str:
    """The JSON type of a value, as a message names it."""
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false",
             int: "a whole number", float: "a number", type(None): "null"}
    return names.get(type(value), type(value).__name__)
