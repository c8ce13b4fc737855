"""A text is cut into context and continuation as the harness cuts it, and every token counts once.
"""

import json

import pytest

from dsjax.data.tokenizers import tokenizer
from dsjax.errors import UserError
from dsjax.evaluate import requests
from dsjax.evaluate.requests import fitted, pair, prefix
from tests.evaluate.tasks.golden import GOLDEN

TEXT = "To be, or not to be: that is the question. " * 4
WORDS = tokenizer.train_bpe([TEXT], 290)


class Numbers:
    """A tokenizer whose text is the length of its ids, which are 1, 2, ..."""

    begin_id, end_id = 0, 99

    def prompt(self, text, *, is_begun=None):
        return list(range(1, int(text) + 1))


@pytest.mark.parametrize(
    "case", json.loads((GOLDEN / "tasks.json").read_text())["windows"],
    ids=lambda case: f"{case['length']} in {case['context']}")
def test_windows_are_the_harnesss(case):
    found = requests.windows(Numbers(), str(case["length"]), case["context"])
    assert [[list(one.context), list(one.continuation)] for one in found] == case["windows"]
    scored = [i for one in found for i in one.continuation]
    assert scored == list(range(1, case["length"] + 1))
    assert all(len(one.context) + len(one.continuation) <= case["context"] + 1 for one in found)


def test_blanks_at_the_end_of_a_context_belong_to_what_follows():
    found = pair(WORDS, "To be, or not  ", "to be")
    assert WORDS.decode(found.context) == "To be, or not"
    assert WORDS.decode(found.continuation) == "  to be"
    assert (*found.context, *found.continuation) == tuple(WORDS.encode("To be, or not  to be"))


def test_a_context_and_its_continuation_are_encoded_together():
    whole = WORDS.encode("To be, or not to be")
    found = pair(WORDS, "To be, or n", "ot to be")
    assert len(found.context) == len(WORDS.encode("To be, or n"))
    assert [*found.context, *found.continuation] == whole


def test_nothing_before_a_text_is_its_first_token():
    found = pair(WORDS, "", "To be")
    assert found.context == (prefix(WORDS),) == (WORDS.end_id,)
    assert found.continuation == tuple(WORDS.encode("To be"))


@pytest.mark.parametrize(("length", "new", "kept", "room"), [
    (10, 5, 10, 5), (40, 5, 27, 5), (40, 20, 16, 16), (3, 1000, 3, 16), (31, 1, 31, 1)])
def test_an_answer_has_half_of_the_context_at_most_and_the_prompt_the_rest(length, new, kept, room):
    ids = list(range(length))
    found = fitted(ids, new, 32)
    assert found.ids == ids[length - kept :]
    assert (found.max_new_tokens, found.cut) == (room, length - kept)
    with pytest.raises(UserError, match="--context 1"):
        fitted(ids, new, 1)
