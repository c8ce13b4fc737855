"""What is shown of an answer does not depend on how its tokens come, and never goes back."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsjax.serve.text import Growing, StopFinder, Thoughts, Vocabulary

LETTERS = st.text("ab<", max_size=30)


def first_stop(text, stops):
    """By the definition: the end of the shortest beginning that holds a stop, less that stop."""
    for end in range(len(text) + 1):
        held = [stop for stop in stops if text[:end].endswith(stop)]
        if held:
            return text[: end - max(map(len, held))], True
    return text, False


def cut(text, places):
    edges = sorted({0, len(text), *(place % (len(text) + 1) for place in places)})
    return [text[a:b] for a, b in itertools.pairwise(edges)]


@given(LETTERS, st.lists(st.text("ab<", min_size=1, max_size=4), max_size=4),
       st.lists(st.integers(0, 99), max_size=9))
def test_text_ends_before_the_stop_that_is_complete_first_however_it_is_cut(text, stops, places):
    finder, shown = StopFinder(stops), ""
    for piece in cut(text, places):
        safe, is_stopped = finder.push(piece)
        shown += safe
        if is_stopped:
            break
    else:
        is_stopped, shown = False, shown + finder.rest()
    assert (shown, is_stopped) == first_stop(text, stops)


@given(LETTERS, st.lists(st.text("ab<", min_size=1, max_size=4), max_size=4))
def test_no_more_is_held_back_than_may_begin_a_stop(text, stops):
    finder = StopFinder(stops)
    safe, is_stopped = finder.push(text)
    held = text[len(safe):]
    assert is_stopped or not held or any(stop.startswith(held) for stop in stops)


@pytest.mark.parametrize(("is_open", "text", "thought", "answer"), [
    (False, "plain <think> text", "", "plain <think> text"),
    (False, "<think>\nwell</think>\n\nyes", "well", "yes"),
    (False, " \n<think>well</think>yes\n", "well", "yes\n"),
    (False, "<thin", "", "<thin"),
    (False, " ", "", " "),
    (True, "\nwell </thin </think>\nyes</think>", "well </thin ", "yes</think>"),
    (True, "well </thi", "well </thi", ""),
    (True, "", "", ""),
])
@given(places=st.lists(st.integers(0, 99), max_size=20))
def test_thoughts_are_set_apart_however_the_text_is_cut(is_open, text, thought, answer, places):
    thoughts, got = Thoughts(is_open), {True: "", False: ""}
    for piece in cut(text, places):
        for is_thought, part in thoughts.push(piece):
            got[is_thought] += part
    for is_thought, part in thoughts.rest():
        got[is_thought] += part
    assert got == {True: thought, False: answer}


@given(text=st.text(max_size=12), stop=st.none() | st.text(min_size=1, max_size=2),
       takes=st.lists(st.booleans(), min_size=60, max_size=60))
def test_every_shown_character_comes_with_the_token_that_began_it(model, text, stop, takes):
    vocabulary = Vocabulary(model.tokenizer)
    growing = Growing(vocabulary, [stop] if stop else [], keeps_scores=True)
    shown, scored = "", []

    def take():
        nonlocal shown
        piece = growing.take()
        shown += piece.content
        scored.extend(piece.scored)
        assert all(one.start <= len(shown) for one in piece.scored)

    ids = model.tokenizer.encode(text)
    for token, takes_now in zip(ids, takes, strict=False):
        growing.push(token, -1.0)
        if takes_now:
            take()
        if growing.is_stopped:
            break
    growing.end()
    take()
    if len(ids) <= len(takes):
        assert shown == (text.partition(stop)[0] if stop else text)
        assert [one.token for one in scored] == ids[: len(scored)]
        assert growing.is_stopped or len(scored) == len(ids)


def test_special_tokens_have_no_text_and_half_characters_have_a_name(model):
    vocabulary, words = Vocabulary(model.tokenizer), model.tokenizer
    growing = Growing(vocabulary, keeps_scores=True)
    accent = words.encode("\u00e9")
    assert len(accent) == 2
    for token in (words.end_id, words.fim_begin_id, *accent):
        growing.push(token)
    growing.end()
    piece = growing.take()
    assert (piece.content, piece.tokens) == ("\u00e9", 4)
    assert [vocabulary.name(one.token) for one in piece.scored] == [
        "<|fim_begin|>", r"bytes:\xc3", r"bytes:\xa9"]
    assert vocabulary.bytes_of(words.fim_begin_id) is None
