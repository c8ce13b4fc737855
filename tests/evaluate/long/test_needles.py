"""A needle stands where its depth says, in a text of exactly its length, and nothing else answers.
"""

import random

import pytest

from dsjax.data import sources
from dsjax.data.tokenizers import tokenizer
from dsjax.errors import UserError
from dsjax.evaluate import requests
from dsjax.evaluate.long.needles import SIGNS, Grid, hidden, items, needle

PLAY = sources.shakespeare()[3]
LENGTHS, DEPTHS = (61, 128), (0.0, 0.37, 1.0)


@pytest.fixture(scope="module")
def words():
    told = "".join(needle(random.Random(i)).statement for i in range(400))
    return tokenizer.train_bpe([PLAY[:20_000] + told], 420)


@pytest.fixture(scope="module")
def hay(words):
    return words.encode(PLAY[:4000])


def parts(item, hay, words):
    """Ids before the needle's sentence and after it, up to the question."""
    statement, question = (words.encode(part) for part in (item.needle.statement,
                                                           item.needle.question))
    context = list(item.text.context)
    assert context[0] == requests.prefix(words)
    assert context[-len(question):] == question
    (at,) = [i for i in range(len(context)) if context[i : i + len(statement)] == statement]
    return context[1:at], context[at + len(statement) : -len(question)]


def test_a_text_has_its_length_and_the_needle_its_depth(words, hay):
    found = list(items(Grid(LENGTHS, DEPTHS, each=3), hay, words))
    assert [(i.length, i.depth) for i in found] == [
        (length, depth) for length in LENGTHS for _ in range(3) for depth in DEPTHS]
    for item in found:
        assert len(item.text.context) + len(item.text.continuation) == item.length
        assert words.decode(item.text.continuation) == item.needle.value
        before, after = parts(item, hay, words)
        room = len(before) + len(after)
        assert len(before) == round(item.depth * room)
        stretch = before + after
        assert any(hay[i : i + room] == stretch for i in range(len(hay))), "one stretch of the hay"


def test_items_of_a_number_differ_in_their_depth_alone(words, hay):
    found = list(items(Grid((128,), DEPTHS, each=4), hay, words))
    for first in range(0, len(found), len(DEPTHS)):
        group = found[first : first + len(DEPTHS)]
        assert len({i.needle for i in group}) == 1
        assert len({(*before, *after) for before, after in (
            parts(i, hay, words) for i in group)}) == 1
        assert len({i.text.context for i in group}) == len(DEPTHS)
    assert len({i.needle for i in found}) > 1
    assert found == list(items(Grid((128,), DEPTHS, each=4), hay, words)), "drawn by the seed"
    assert found != list(items(Grid((128,), DEPTHS, each=4, seed=1), hay, words))


def test_nothing_but_the_needle_answers(words, hay):
    told = set("".join(SIGNS))
    assert not told & set(PLAY)
    for item in items(Grid((128,), (0.5,), each=20), hay, words):
        first, second = item.needle.value.split()
        assert first in SIGNS[0]
        assert second in SIGNS[1]
        text = words.decode(item.text.context[1:])
        assert [c for c in text if c in told] == [first, second]
        assert len(item.text.continuation) == 2, "a token each"


@pytest.mark.parametrize(("change", "said"), [
    ({"lengths": (12,)}, "has no room for a needle"),
    ({"lengths": (8192,)}, "the haystack has"),
    ({"lengths": ()}, "hides nothing"),
    ({"depths": (0.5, 1.2)}, "shares from 0 to 1"),
    ({"each": 0}, "at least one item"),
])
def test_what_hides_nothing_is_refused(words, hay, change, said):
    with pytest.raises(UserError, match=said):
        list(items(Grid(**({"lengths": (64,), "depths": (0.5,), "each": 1} | change)), hay, words))


def test_the_first_and_the_last_place_of_the_hay_are_reached(words, hay):
    told = needle(random.Random(0))
    first, last = (hidden(told, 64, 0.0, at, hay, words) for at in (0.0, 1 - 1e-9))
    statement = len(words.encode(told.statement))
    question = len(words.encode(told.question))
    room = len(first.context) - 1 - statement - question
    assert list(first.context[1 + statement : -question]) == hay[:room]
    assert list(last.context[1 + statement : -question]) == hay[-room:]
