"""Measures of scores, by numbers that can be counted by hand."""

import math

import numpy as np
import pytest

from dsjax.evaluate import measures
from dsjax.evaluate.likelihood import Scores
from dsjax.evaluate.measures import Measure


def scores(*logprobs):
    return Scores(np.array(logprobs, np.float32), np.zeros(len(logprobs), bool))


def test_choices_are_ranked_by_their_sum_and_by_their_characters():
    """Umlauts are a character and two bytes: -8 / 4 wins over -9 / 4 and loses to -5 / 3."""
    found = [scores(-2.0, -6.0), scores(-9.0), scores(-5.0)]
    choices = ["\u00fc\u00fc\u00fc\u00fc", "four", "one"]
    assert measures.ranked(found, choices, 2) == {"acc": 1.0, "acc_norm": 1.0}
    longer = [scores(-8.0), scores(-7.5), scores(-7.9)]
    assert measures.ranked(longer, ["\u00fc" * 4, "fives", "fou"], 1) == {"acc": 1.0,
                                                                        "acc_norm": 1.0}
    assert measures.ranked(longer, ["\u00fc" * 5, "fiv", "fou"], 0)["acc_norm"] == 1.0
    by_bytes = [scores(-8.0), scores(-7.0)]  # 8 bytes or 4 characters; 5 of both
    assert measures.ranked(by_bytes, ["\u00fc" * 4, "fives"], 1)["acc_norm"] == 1.0


def test_the_first_of_equals_is_chosen():
    assert measures.ranked([scores(-1.0), scores(-1.0)], ["a", "b"], 0)["acc"] == 1.0


def test_perplexities_of_words_bytes_and_items():
    logprobs = [-2.0, -4.0]
    assert measures.perplexity(logprobs).value == pytest.approx(math.exp(3))
    assert measures.perplexity(logprobs).stderr == pytest.approx(math.exp(3) * 1.0)
    assert measures.weighted_perplexity(logprobs, [1, 2]).value == pytest.approx(math.exp(2))
    assert measures.bits_per_byte(logprobs, [8, 4]).value == pytest.approx(0.5 / math.log(2))
    assert measures.perplexity([-1e6, -1e6]).value == math.inf


def test_words_are_what_blanks_separate():
    assert measures.words("to be,  or\nnot") == 4
    assert measures.words(" to be") == 3  # the harness counts what stands before a first blank


def test_perplexity_by_position():
    found = measures.by_position([scores(-1.0, -2.0, -3.0), scores(-5.0)], [0, 2], [0, 2, 9])
    assert [one.count for one in found] == [2, 2, 0]
    assert found[0].value == pytest.approx(math.exp(1.5))
    assert found[1].value == pytest.approx(math.exp(4))
    assert math.isnan(found[2].value)


def test_one_item_has_no_error_nor_has_a_pool_with_such_a_part():
    one = measures.mean([1.0])
    assert one == Measure(1.0, None, 1)
    assert measures.pooled([one, measures.mean([0.0, 1.0])]) == Measure(2 / 3, None, 3)
