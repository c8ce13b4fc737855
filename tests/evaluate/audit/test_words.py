"""Words are those of a text made plain, and each is found again where it stands."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsjax.evaluate.audit.words import Vocabulary, places, words

LETTERS = st.characters(exclude_categories=("Cs",))
TEXTS = st.one_of(st.text("aB'\t .-\n9$_", max_size=60), st.text(LETTERS, max_size=40),
                  st.text("a\u00c9\u2019\u2014\u00a0\u3000\u00b4\ufb01\u00ad\u2028\x1c\x85 \u03a3",
                          max_size=40))


@pytest.mark.parametrize(("text", "wanted"), [
    ("Don't STOP, re-read: it's $1,000!", "dont stop re read its 1 000"),
    ("don\u2019t\u2014stop \u201c\ufb01ne\u201d na\u00efve\u00adly", "dont stop fine na\u00efvely"),
    ("x=\\frac{1}{2}\u00a0\u2264 \uff21\uff22", "x frac 1 2 ab"),
    ("' '' - ...", ""),
    ("\u4e2d\u6587\u3002\u4e2d", "\u4e2d\u6587 \u4e2d"),
])
def test_case_marks_and_blanks_do_not_count(text, wanted):
    assert [word.decode() for word in words(text)] == wanted.split()


@settings(max_examples=300, deadline=None)
@given(TEXTS)
def test_the_words_of_a_text_are_those_of_its_parts_between_blanks(text):
    assert words(text) == [word for part in text.split() for word in words(part)]


@settings(max_examples=300, deadline=None)
@given(TEXTS)
def test_every_word_is_found_where_it_stands(text):
    found = words(text)
    for i, (start, stop) in enumerate(places(text, [(k, k) for k in range(len(found))])):
        inside = words(text[start:stop])
        assert found[i] in inside
        before = len(words(text[:start]))
        assert before <= i < before + len(inside)
        assert not text[start].isspace()
        assert not text[stop - 1].isspace()


def test_a_vocabulary_gives_equal_words_one_number_and_strange_ones_none():
    vocabulary = Vocabulary()
    assert vocabulary.learn("one two One").tolist() == [1, 2, 1]
    assert vocabulary.read("TWO three one.").tolist() == [2, 0, 1]
    assert len(vocabulary) == 2


@settings(max_examples=200, deadline=None)
@given(st.text("aB'\t .-\n9$_\x1c\x0b", max_size=60))
def test_places_in_ascii_are_those_that_the_loop_for_other_text_finds(text):
    spans = [(k, k) for k in range(len(words(text)))]
    assert places(text, spans) == places(text + " \u00e9", spans)
