"""Costs are counted right, and the record says that none but the router's grows with experts."""

import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.growth import STUDY
from experiments.growth import costs as growth


@pytest.fixture(scope="module")
def rows():
    record = json.loads((STUDY.folder / "records" / "growth.json").read_text())
    return record["rows_measured"]


def test_copies_are_those_of_all_choices():
    devices, experts = 4, 8
    others = [len({e // 2 for e in chosen} - {0})
              for chosen in itertools.combinations(range(experts), growth.PER_TOKEN)]
    assert growth.copies_expected(devices, experts) == pytest.approx(np.mean(others))


def test_products_in_loops_are_counted_as_often_as_they_run():
    def looped(x, w):
        return jax.lax.scan(lambda x, _: (jnp.sin(x @ w), None), x, length=5)[0]

    text = jax.jit(looped).lower(jnp.ones((7, 11)), jnp.ones((11, 11))).compile().as_text()
    assert growth.product_flops(text) == 5 * 2 * 7 * 11 * 11


def test_counted_copies_are_the_formulas_within_the_spread_of_random_choices(rows):
    for row in rows:
        assert row["copies_counted"] == pytest.approx(row["copies_expected"], rel=0.01)


def test_compiled_buffers_are_the_formulas_byte_by_byte(rows):
    assert [r["sent_compiled"] for r in rows] == [r["sent_expected"] for r in rows]


def test_products_of_a_device_grow_by_the_router_alone(rows):
    assert len(rows) == len(growth.DEVICES) * len(growth.EXPERTS)
    for devices in growth.DEVICES:
        assert len({r["flops_beyond"] for r in rows if r["devices"] == devices}) == 1
