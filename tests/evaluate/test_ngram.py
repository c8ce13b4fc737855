"""The n-gram floor is a distribution over bytes, equal to its definition written out in loops."""

import math
from collections import defaultdict
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsjax.data import sources
from dsjax.evaluate import ngram

TEXTS = st.lists(st.binary(max_size=12).map(lambda b: bytes(c % 4 + 97 for c in b)), min_size=1)


def in_loops(train, heldout, order):
    """The definition, one dictionary a context."""
    counts = defaultdict(lambda: defaultdict(int))
    for text in train:
        for i, byte in enumerate(text):
            for n in range(min(i, order - 1) + 1):
                counts[text[i - n : i], n][byte] += 1

    def p(byte, context):
        lower = p(byte, context[1:]) if context else 1 / 256
        seen = counts.get((context, len(context)), {})
        total, kinds = sum(seen.values()), len(seen)
        return (seen.get(byte, 0) + kinds * lower) / (total + kinds) if total else lower

    bits = [
        -math.log2(p(byte, text[max(0, i - order + 1) : i]))
        for text in heldout
        for i, byte in enumerate(text)
    ]
    return sum(bits) / len(bits)


@settings(deadline=None, max_examples=60)
@given(TEXTS.filter(any), TEXTS.filter(any), st.integers(1, 5))
def test_it_is_the_definition(train, heldout, order):
    # float64 sums of positive terms: relative error far below 1e-12
    expected = in_loops(train, heldout, order)
    assert ngram.cost(train, heldout, order) == pytest.approx(expected, rel=1e-12)


def test_probabilities_add_up_to_one_after_any_context():
    train = [b"abracadabra", b"abrupt"]
    for context in (b"", b"z", b"a", b"ab", b"abr"):
        total = 0.0
        for byte in range(256):
            with_byte = ngram.cost(train, [context + bytes([byte])], 4) * (
                len(context) + 1
            )
            alone = ngram.cost(train, [context], 4) * len(context) if context else 0.0
            total += 2 ** (alone - with_byte)
        assert total == pytest.approx(1, rel=1e-9)  # 256 terms, each a difference of small sums


def test_order_one_on_uniform_bytes_is_eight_bits():
    train = [bytes(range(256)) * 4]
    assert ngram.cost(train, train, 1) == pytest.approx(8, rel=1e-12)


def test_shakespeare_costs_about_two_bits_a_byte_and_more_context_helps():
    works = [work.encode() for work in sources.shakespeare()]
    train, heldout = works[:10], [works[20][:50_000]]
    costs = [ngram.cost(train, heldout, order) for order in (1, 2, 3, 5)]
    assert all(a > b for a, b in pairwise(costs))
    assert 2.0 < costs[-1] < 2.7


def test_empty_texts_and_long_orders_are_refused():
    with pytest.raises(ValueError, match="at least one byte"):
        ngram.cost([b""], [b"a"])
    with pytest.raises(ValueError, match="order=8"):
        ngram.cost([b"a"], [b"a"], 8)
    short = ngram.cost([b"a"], [b"a", b""])  # (1 + 1 / 256) / 2
    assert short == pytest.approx(-math.log2(257 / 512))
    assert np.isfinite(ngram.cost([b"a"], [b"abcdefgh"]))
