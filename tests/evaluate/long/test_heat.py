"""Cells are means of their own items, and what is likeliest token by token is what is written."""

import dataclasses
import math
import random

import numpy as np
import pytest

from dsjax.evaluate.likelihood import Scorer, Scores, Text
from dsjax.evaluate.long import heat
from dsjax.evaluate.long.needles import Item, needle
from dsjax.infer import Model, default_backend
from dsjax.infer.engine.device import Device, Setting
from dsjax.infer.engine.engine import Engine
from dsjax.model import transformer
from tests import agreement

CFG = dataclasses.replace(agreement.TINY, layers=2)
NEEDLE = needle(random.Random(0))


def item(length, depth, continuation=(1, 2), context=(3,)):
    return Item(length, depth, NEEDLE, Text(tuple(context), tuple(continuation)))


def scores(logprobs, greedy):
    return Scores(np.array(logprobs, np.float32), np.array(greedy))


def test_a_cell_is_the_mean_of_its_items():
    asked = [item(64, 0.0), item(64, 1.0), item(64, 0.0), item(128, 0.0)]
    found = [scores([-1, -2], [True, True]), scores([-4, -4], [True, False]),
             scores([-3, 0], [False, True]), scores([-0.5, -0.5], [True, True])]
    cells = heat.cells(asked, found, [(1, 2), (1, 2), (1,), (2, 1)])
    assert [(c.length, c.depth, c.items) for c in cells] == [(64, 0, 2), (64, 1, 1), (128, 0, 1)]
    assert [c.nats for c in cells] == [1.5, 4.0, 0.5]
    assert [c.likeliest for c in cells] == [0.5, 0.0, 1.0]
    assert [c.written for c in cells] == [0.5, 1.0, 0.0]
    assert all(math.isnan(c.written) for c in heat.cells(asked, found))


@pytest.mark.parametrize("slots", [2])
def test_what_is_likeliest_is_what_is_written(slots):
    params = agreement.draw(transformer.specs(CFG), 2)
    model = Model(CFG, params, None, 64, default_backend(), None)  # type: ignore[arg-type]
    draw = np.random.default_rng(5)
    contexts = [tuple(draw.integers(0, CFG.vocab, n).tolist()) for n in (5, 31, 40, 40, 17, 2, 60)]
    engine = Engine(Device(model, Setting(slots=slots, max_len=64, chunk=32, pages=8)))
    wrote = heat.write([item(64, 0.0, (0, 0, 0), context) for context in contexts], engine)
    assert all(len(answer) == 3 for answer in wrote)
    right = [item(64, 0.0, answer, context) for answer, context in zip(wrote, contexts)]
    wrong = [item(64, 1.0, (*answer[:2], (answer[2] + 1) % CFG.vocab), context)
             for answer, context in zip(wrote, contexts)]
    asked = right + wrong
    found = Scorer(model)([one.text for one in asked])
    assert [one.is_all_greedy for one in found] == [True] * len(right) + [False] * len(wrong)
    first, second = heat.cells(asked, found, wrote * 2)
    assert (first.likeliest, first.written) == (1, 1)
    assert (second.likeliest, second.written) == (0, 0)
    assert first.nats < second.nats
