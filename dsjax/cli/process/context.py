"""A context that is longer than a model was made for is said."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dsjax.errors import say

if TYPE_CHECKING:
    from dsjax.infer import Model


def say_if_beyond(model: Model, context: int | None) -> None:
    """Say, in one sentence, that a model was not made for so many positions."""
    from dsjax.infer import reach

    if (said := reach.remark(model, context)) is not None:
        say(f"dsjax: {said}")
