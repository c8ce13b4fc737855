"""Scores of needles by length and depth, two ways: by likelihood and by what the model writes.

Likelihood needs one pass and says how far off a model is; writing is what a user sees. Greedily
they agree: a value that is the likeliest token by token is the one that is written.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from dsjax.errors import UserError
from dsjax.evaluate.likelihood import Scores
from dsjax.evaluate.long.needles import Item
from dsjax.infer import Sampling
from dsjax.infer.engine.engine import Engine, Output


@dataclass(frozen=True)
class Cell:
    """Items of one length and depth."""

    length: int
    depth: float
    items: int
    nats: float
    """Mean of -log p of a token of the value."""
    likeliest: float
    """Share of items whose value is the likeliest, token by token."""
    written: float
    """Share of items whose value the model writes; not a number where it was not asked."""


def cells(items: Sequence[Item], scores: Sequence[Scores],
          answers: Sequence[Sequence[int]] | None = None) -> list[Cell]:
    """Sum items up, in the order of their lengths and depths. answers: ids as `write` gives them.
    """
    places = dict.fromkeys((item.length, item.depth) for item in items)
    made = []
    for length, depth in places:
        own = [i for i, item in enumerate(items) if (item.length, item.depth) == (length, depth)]
        tokens = sum(len(scores[i].logprobs) for i in own)
        written = math.nan if answers is None else sum(
            tuple(answers[i]) == items[i].text.continuation for i in own) / len(own)
        made.append(Cell(length, depth, len(own), -sum(scores[i].total for i in own) / tokens,
                         sum(scores[i].is_all_greedy for i in own) / len(own), written))
    return made


def write(items: Sequence[Item], engine: Engine) -> list[tuple[int, ...]]:
    """Let a model write the value of each item, greedily, as many tokens as the value has."""
    made: list[list[int]] = [[] for _ in items]
    live = 0

    def begin(item: Item, row: list[int]) -> None:
        nonlocal live

        def take(output: Output) -> None:
            nonlocal live
            if output.finish_reason == "error":
                raise UserError(output.error)
            row.extend(output.tokens)
            live -= output.finish_reason is not None

        live += 1
        engine.add(item.text.context,
                   Sampling(temperature=0, max_new_tokens=len(item.text.continuation)), take)

    for item, row in zip(items, made, strict=True):
        begin(item, row)
        while live >= 2 * engine.slots:
            engine.step()
    while engine.step():
        pass
    return [tuple(row) for row in made]
