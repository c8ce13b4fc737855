"""Estimates are their definitions: averages over every choice of k samples, and textbook errors."""

import itertools
import math
import statistics

import pytest

from dsjax.errors import UserError
from dsjax.evaluate.grade import estimators


@pytest.mark.parametrize("samples", range(1, 8))
def test_pass_at_k_is_the_share_of_choices_with_a_pass(samples):
    for passed, k in itertools.product(range(samples + 1), range(1, samples + 1)):
        outcomes = [i < passed for i in range(samples)]
        choices = list(itertools.combinations(outcomes, k))
        want = sum(map(any, choices)) / len(choices)
        assert estimators.pass_at_k(samples, passed, k) == pytest.approx(want, abs=1e-12)


def test_pass_at_k_of_many_samples_is_the_quotient_of_binomials():
    want = 1 - math.comb(199_000, 100) / math.comb(200_000, 100)
    assert estimators.pass_at_k(200_000, 1000, 100) == pytest.approx(want, rel=1e-12)


@pytest.mark.parametrize(("samples", "passed", "k"), [(3, 1, 4), (3, 4, 1), (3, 1, 0), (0, 0, 1)])
def test_what_no_samples_give_is_refused(samples, passed, k):
    with pytest.raises(UserError, match=f"pass@{k}"):
        estimators.pass_at_k(samples, passed, k)


def test_the_majority_is_the_first_seen_of_equals():
    assert estimators.majority(["b", "a", "a", "b", "c"]) == "b"
    assert estimators.majority(["b", "a", "a"]) == "a"
    assert estimators.cons_at_k(["b", "a", "a"], [False, True, True])
    assert not estimators.cons_at_k(["b", "a"], [False, True])
    assert estimators.majority(["", "", "a"]) == "a"  # no answer is no vote
    assert estimators.majority(["", ""]) == ""


def test_errors_are_those_of_the_textbook():
    values = [0.0, 1.0, 1.0, 0.5, 0.0]
    assert estimators.mean(values) == statistics.mean(values)
    assert estimators.standard_error(values) == pytest.approx(
        statistics.stdev(values) / math.sqrt(5), rel=1e-12)
    assert estimators.standard_error([1.0] * 3) == 0.0
    assert math.isnan(estimators.standard_error([1.0]))
    assert math.isnan(estimators.mean([]))


def test_a_pooled_error_is_within_groups_alone():
    groups = [[0.0, 1.0, 1.0], [0.0, 0.0, 0.0, 1.0], [1.0]]
    sizes = [len(group) for group in groups]
    errors = [estimators.standard_error(group) for group in groups]
    within = sum((x - statistics.mean(group)) ** 2 for group in groups for x in group)
    want = math.sqrt(within / (8 - 3) / 8)
    assert estimators.pooled_error(errors, sizes) == pytest.approx(want, rel=1e-12)
    assert math.isnan(estimators.pooled_error([math.nan], [1]))
