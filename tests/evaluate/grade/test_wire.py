"""What goes over whole comes back equal and of the same type; nothing else becomes data."""

import array
import collections
import datetime
import enum
import json
import math
import os
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsjax.evaluate.grade import wire

HASHABLE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
    | st.complex_numbers(allow_nan=False) | st.binary() | st.fractions()
    | st.decimals(allow_nan=False) | st.dates() | st.datetimes() | st.times()
    | st.sampled_from([int, str, ValueError]),
    lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=3), max_leaves=5)
VALUES = st.recursive(HASHABLE, lambda inner: st.lists(inner, max_size=3)
                      | st.dictionaries(HASHABLE, inner, max_size=3), max_leaves=9)


def none(value):
    raise TypeError(type(value).__name__)


def there_and_back(value, keep=none):
    return wire.decode(json.loads(json.dumps(wire.encode(value, keep))), lambda number: number)


@given(VALUES)
def test_data_go_over_whole(value):
    back = there_and_back(value)
    assert repr(back) == repr(value) or back == value
    assert type(back) is type(value)


@pytest.mark.parametrize("value", [
    -(2**53), 2**53, -0.0, math.inf, "\ud800\0", bytearray(b"\0"), range(1, 9, 3),
    collections.deque([1]), array.array("i", [1, -2]), Decimal("NaN"), Fraction(1, 3),
    datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC), {1, (2,)}, {(1,): [None, True]}])
def test_so_do_the_edges(value):
    back = there_and_back(value)
    assert (repr(back), type(back)) == (repr(value), type(value))


def test_an_integer_is_longer_than_its_text_may_be():
    assert there_and_back(10**5000) == 10**5000


def test_a_subclass_arrives_as_its_base():
    class Yes(int):
        __eq__ = lambda *_: True  # noqa: E731
        __hash__ = int.__hash__

    class Color(enum.IntEnum):
        RED = 3

    point = collections.namedtuple("point", "x y")
    for value, want in ((Yes(1), 1), (Color.RED, 3), (point(1, 2), (1, 2)),
                        (collections.Counter("aab"), {"a": 2, "b": 1}),
                        (collections.defaultdict(int, {1: 2}), {1: 2})):
        back = there_and_back(value)
        assert (back, type(back)) == (want, type(want))


def test_other_objects_are_numbers():
    assert there_and_back([object(), (x for x in ())], lambda _: 7) == [7, 7]
    with pytest.raises(TypeError, match="function"):
        there_and_back(lambda: 0)


def test_a_type_is_a_type():
    for name in ("exec", "__import__", "print"):
        with pytest.raises(KeyError):
            wire.decode({"type": name}, none)


def test_messages_end_where_they_say():
    reads, writes = os.pipe()
    wire.send(writes, {"a": [1]})
    wire.send(writes, None)
    assert wire.receive(reads) == {"a": [1]}
    assert wire.receive(reads) is None
    os.write(writes, b"\xff\xff\xff\xff")
    with pytest.raises(wire.ClosedError, match="bytes"):
        wire.receive(reads)
    os.write(writes, b"\x09\0\0\0half")
    os.close(writes)
    with pytest.raises(wire.ClosedError):
        wire.receive(reads)
    os.close(reads)
