"""The simulator gives the closed forms exactly where they hold, and obeys bounds where they do not.

Times are fractions, so equal means equal.
"""

import time
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsjax.pipeline.schedules.build import NAMES, build, lockstep, split_backward
from dsjax.pipeline.schedules.simulate import (
    V3_OPTIMIZER,
    V3_STEP,
    V3_TOTAL,
    Times,
    formula_activations,
    formula_bubble,
    is_in_regime,
    lockstep_time,
    simulate,
    step_parts,
    v3_step,
)
from tests.pipeline.schedules.test_build import schedules, with_row

quick = settings(max_examples=40, deadline=None, database=None)
durations = st.fractions(Fraction(1, 8), 8, max_denominator=8)
shares = st.fractions(0, 1, max_denominator=8)


@st.composite
def any_times(draw: st.DrawFn, transfer: st.SearchStrategy = durations) -> Times:
    """Any durations; pairs save between nothing and all that is possible."""
    forward, backward, weight = draw(durations), draw(durations), draw(durations)
    longest = max(forward, backward + weight)
    saved = draw(shares) * (forward + backward + weight - longest)
    pair = forward + backward + weight - saved
    return Times(forward, backward, weight, pair, draw(transfer))


@quick
@given(schedules(("gpipe", "1f1b", "interleaved")), any_times(st.just(0)))
def test_full_backward_bubbles_are_exact_for_any_times(schedule, times):
    timeline = simulate(schedule, times)
    expected = (schedule.ranks - 1) * (times.forward + times.input + times.weight)
    assert set(timeline.bubbles) == {expected}
    assert formula_bubble(schedule, times) == expected


@quick
@given(schedules(("zb-h1",)), any_times(st.just(0)))
def test_zb1p_is_exact_while_w_is_no_longer_than_f_or_b(schedule, times):
    times = replace(times, weight=min(times.weight, times.forward, times.input))
    full = times.input + times.weight  # the report's B
    expected = (schedule.ranks - 1) * (times.forward + full - 2 * times.weight)
    if schedule.microbatches >= schedule.ranks:
        assert set(simulate(schedule, times).bubbles) == {expected}
    assert formula_bubble(schedule, times) == expected


@quick
@given(schedules(("zb-v",)), durations, st.fractions(Fraction(1, 2), 1, max_denominator=8))
def test_zb_v_waits_only_for_the_first_microbatch(schedule, forward, share):
    timeline = simulate(schedule, Times(forward, forward, forward * share))
    assert timeline.bubble == (schedule.ranks - 1) * forward
    even = simulate(schedule, Times(forward, forward, forward))
    for rank, spans in enumerate(even.spans):
        assert spans[-1][1] - spans[0][0] == even.busy[rank]


@quick
@given(schedules(("dualpipe", "dualpipe-v")), durations, shares, shares)
def test_dualpipe_is_exact_while_b_equals_f_and_w_is_no_longer(schedule, forward, share, saved):
    weight = forward * share
    full, alone = forward + weight, 2 * forward + weight  # the report's B; F + B
    pair = alone - saved * (alone - max(forward, full))
    times = Times(forward, forward, weight, pair)
    expected = (schedule.stages // 2 - 1) * (pair + full - 3 * weight)
    timeline = simulate(schedule, times)
    assert timeline.bubble == formula_bubble(schedule, times) == expected
    if saved == 0:
        assert set(timeline.bubbles) == {expected}


def test_outside_its_regime_the_dualpipe_formula_is_not_the_truth():
    times = Times(Fraction(1), Fraction(3, 2), Fraction(1, 2), Fraction(3))
    schedule = build("dualpipe", 8, 20)
    assert formula_bubble(schedule, times) == Fraction(21, 2)
    assert simulate(schedule, times).bubble == Fraction(19, 2)
    assert not is_in_regime(schedule, times)


@quick
@given(schedules(), any_times(st.just(0)))
def test_in_its_regime_a_formula_is_the_simulated_bubble(schedule, times):
    if is_in_regime(schedule, times):
        assert simulate(schedule, times).bubble == formula_bubble(schedule, times)


def test_the_regimes_are_as_wide_as_the_module_says():
    assert is_in_regime(build("zb-h1", 4, 4), Times(2, 2, 1))
    assert not is_in_regime(build("zb-h1", 4, 3), Times(2, 2, 1))
    assert not is_in_regime(build("zb-h1", 4, 4), Times(2, 1, 2))
    assert is_in_regime(build("zb-v", 4, 8), Times(2, 2, 1))
    assert not is_in_regime(build("zb-v", 4, 8), Times(2, 1, 1))
    assert not is_in_regime(build("gpipe", 4, 8), Times(transfer=1))
    assert is_in_regime(build("gpipe", 4, 8), Times(5, 1, 3))


@quick
@given(schedules())
def test_peaks_are_the_closed_forms(schedule):
    assert max(simulate(schedule).peak_activations) == formula_activations(schedule)


@quick
@given(schedules(), any_times())
def test_no_rank_overlaps_itself_and_nothing_starts_before_it_arrives(schedule, times):
    timeline = simulate(schedule, times)
    ends = {}
    for row, spans in zip(schedule.table, timeline.spans):
        assert all(first[1] <= second[0] for first, second in pairwise(spans))
        for cell, (_, end) in zip(row, spans):
            for op in cell:
                ends["F" if op.kind == "F" else op.kind[0], op.stage, op.microbatch] = end
    for rank, (row, spans) in enumerate(zip(schedule.table, timeline.spans)):
        free = 0
        for cell, (start, end) in zip(row, spans):
            arrivals = [
                ends[kind.value, stage, microbatch]
                + (times.transfer if schedule.rank_of(stage, microbatch) != rank else 0)
                for op in cell
                for kind, stage, microbatch in schedule.needs(op)
            ]
            assert start == max([free, *arrivals])
            free = end


@quick
@given(schedules(), any_times(), durations)
def test_time_scales_and_slower_links_never_help(schedule, times, factor):
    base = simulate(schedule, times)
    named = ("forward", "input", "weight", "overlapped", "transfer")
    scaled = Times(*(getattr(times, name) * factor for name in named))
    assert simulate(schedule, scaled).makespan == base.makespan * factor
    slower = replace(times, transfer=times.transfer + factor)
    assert simulate(schedule, slower).makespan >= base.makespan


@quick
@given(schedules(("zb-h1", "zb-v")))
def test_equal_slots_and_equal_times_are_the_same_thing(schedule):
    assert simulate(schedule).makespan == lockstep(schedule).slots


@quick
@given(schedules(), any_times(st.just(0)))
def test_lockstep_never_beats_the_free_run(schedule, times):
    steps = lockstep(schedule)
    assert simulate(schedule, times).makespan <= lockstep_time(steps, times)
    assert lockstep_time(steps, times) <= steps.slots * times.pair


def test_split_backwards_make_1f1b_shorter_in_lockstep():
    schedule, times = build("1f1b", 8, 24), Times()
    whole = lockstep_time(lockstep(schedule), times)
    split = lockstep_time(lockstep(split_backward(schedule)), times)
    # whole: F on one rank beside BW on another, 2 a slot; split: 3 M and a hop of F and B a rank
    assert split == 3 * 24 + 2 * (8 - 1) < whole


@pytest.mark.parametrize("name", ["1f1b", "zb-h1", "dualpipe"])
def test_finer_schedules_idle_less_on_the_same_ranks(name):
    order = ["gpipe", "1f1b", "zb-h1", "dualpipe"]
    spans = [simulate(build(each, 8, 24)).bubble for each in order]
    assert spans == [21, 21, 7, 6]


@quick
@given(schedules(), any_times())
def test_the_parts_of_a_step_are_the_step(schedule, times):
    timeline = simulate(schedule, times)
    for rank in range(schedule.ranks):
        parts = step_parts(timeline, rank)
        named = (parts.forward, parts.backward, parts.weight, parts.overlapped, parts.bubble)
        assert sum(named) == timeline.makespan


def test_the_published_v3_step_is_a_sum_of_its_parts():
    parts = V3_STEP.forward + V3_STEP.backward + V3_STEP.weight + V3_STEP.overlapped
    total = parts + V3_STEP.bubble + V3_OPTIMIZER
    # six numbers printed to 0.01 and one to 0.001: at most 6 x 0.005 + 0.0005 of rounding
    assert abs(total - V3_TOTAL) <= 0.0305


def test_the_v3_schedule_explains_two_fifths_of_the_published_bubble():
    for rank in range(8):
        timeline = v3_step(rank)
        parts = step_parts(timeline, rank)
        for part in ("forward", "backward", "weight", "overlapped"):
            assert getattr(parts, part) == pytest.approx(getattr(V3_STEP, part), rel=1e-12)
        assert 0.75 < parts.bubble < 1.0
        assert 18.6 < timeline.makespan + V3_OPTIMIZER < 18.9
    times = v3_step(0).times
    assert times.pair / (times.forward + times.backward) == pytest.approx(0.919, abs=5e-4)
    assert formula_bubble(v3_step(0).schedule, times) == pytest.approx(1.086, abs=5e-4)


def test_64_ranks_and_1024_microbatches_take_seconds():
    start = time.process_time()
    timeline = simulate(build("dualpipe", 64, 1024))
    assert timeline.bubble == (32 - 1) * (3 + 2 - 3)
    assert time.process_time() - start < 10  # about 1 s


def test_ranks_that_wait_for_each_other_are_an_error_not_a_hang():
    schedule = build("1f1b", 2, 2)
    with pytest.raises(ValueError, match="1f1b never ends: rank"):
        simulate(with_row(schedule, 0, schedule.table[0][::-1]))


@pytest.mark.parametrize("wrong", [
    {"forward": -1}, {"overlapped": float("nan")}, {"transfer": 1e308}, {"weight": 1e-300}])
def test_times_that_are_no_durations_are_refused(wrong):
    with pytest.raises(ValueError, match="is not a duration"):
        Times(**wrong)


def test_every_name_has_a_formula():
    for name in NAMES:
        timeline = simulate(build(name, 4, 8))
        assert timeline.bubble == formula_bubble(timeline.schedule, timeline.times)
