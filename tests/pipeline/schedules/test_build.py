"""A schedule is right for every size it accepts: each operation once, on time, in fixed memory.

The proof is itself tested: a table that is broken in any one way must be refused.
"""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsjax.errors import UserError
from dsjax.pipeline.schedules.build import NAMES, build, lockstep, split_backward
from dsjax.pipeline.schedules.table import Kind, Schedule
from dsjax.pipeline.schedules.validate import validate, validate_lockstep

GOLDEN = json.loads(
    (Path(__file__).parents[2] / "golden" / "dualpipe_pp8_mb20_steps.json").read_text()
)
quick = settings(max_examples=40, deadline=None, database=None)


@st.composite
def schedules(draw: st.DrawFn, names: tuple[str, ...] = NAMES) -> Schedule:
    """Any schedule of up to 8 ranks, with no more microbatches than a few rounds."""
    name = draw(st.sampled_from(names))
    ranks = draw(st.integers(1, 8))
    if name == "interleaved":
        chunks = draw(st.integers(1, 3))
        return build(name, ranks, ranks * draw(st.integers(1, 4)), chunks=chunks)
    if name == "dualpipe":
        ranks += ranks % 2
        return build(name, ranks, 2 * draw(st.integers(ranks, 2 * ranks)))
    least = {"zb-v": 2 * ranks - 1, "dualpipe-v": 2 * ranks}.get(name, 1)
    return build(name, ranks, draw(st.integers(least, least + 12)))


@quick
@given(schedules())
def test_every_schedule_is_proved(schedule):
    proof = validate(schedule)
    units = schedule.stages * schedule.microbatches
    halves = sum(op.kind is Kind.INPUT for row in schedule.table for cell in row for op in cell)
    assert proof.operations == 2 * units + halves
    between_stages = 2 * (schedule.stages - 1) * schedule.microbatches
    assert proof.dependencies == between_stages + units + halves
    assert proof.transfers <= between_stages


@quick
@given(schedules(), st.randoms(use_true_random=False))
def test_a_missing_or_doubled_operation_is_refused(schedule, random):
    rank = random.randrange(schedule.ranks)
    row = schedule.table[rank]
    at = random.randrange(len(row))
    for broken in (row[:at] + row[at + 1 :], row[: at + 1] + row[at:]):
        with pytest.raises(ValueError, match="times"):
            validate(with_row(schedule, rank, broken))


@quick
@given(schedules())
def test_backwards_before_forwards_are_a_deadlock(schedule):
    late = sorted(schedule.table[0], key=lambda cell: cell[0].kind is Kind.FORWARD)
    with pytest.raises(ValueError, match=r"never ends: rank 0 comes to (B|BW|W) of stage"):
        validate(with_row(schedule, 0, tuple(late)))


def test_an_operation_on_a_foreign_rank_or_direction_is_refused():
    schedule = build("dualpipe", 4, 8)
    first = schedule.table[0][0][0]
    moved = with_row(schedule, 0, ((replace(first, stage=1),), *schedule.table[0][1:]))
    with pytest.raises(ValueError, match="on rank 0, but it belongs to rank 1"):
        validate(moved)
    turned = with_row(schedule, 0, ((replace(first, direction=1),), *schedule.table[0][1:]))
    with pytest.raises(ValueError, match="direction 1, on rank 0, but it belongs to rank 0, dir"):
        validate(turned)
    beyond = with_row(schedule, 0, ((replace(first, microbatch=8),), *schedule.table[0][1:]))
    with pytest.raises(ValueError, match="microbatches below 8"):
        validate(beyond)


def test_one_slot_too_early_is_refused():
    steps = lockstep(build("1f1b", 3, 4))
    for rank, row in enumerate(steps.table):
        for slot in range(1, steps.slots):
            if row[slot] and not row[slot - 1]:
                early = [*row[: slot - 1], row[slot], (), *row[slot + 1 :]]
                table = (*steps.table[:rank], tuple(early), *steps.table[rank + 1 :])
                with pytest.raises(ValueError, match=f"move it to slot {slot} or later"):
                    validate_lockstep(replace(steps, table=table))


def test_dualpipe_step_counts_are_the_published_ones():
    schedule = build("dualpipe", GOLDEN["num_ranks"], GOLDEN["num_chunks"])
    expected = GOLDEN["step_counts_by_rank"]
    assert {str(r): list(counts) for r, counts in enumerate(schedule.steps)} == expected


def test_the_dualpipe_table_itself_goes_through_the_eight_golden_steps():
    schedule = build("dualpipe", GOLDEN["num_ranks"], GOLDEN["num_chunks"])
    for rank, row in enumerate(schedule.table):
        assert re.fullmatch(eight_steps(GOLDEN["step_counts_by_rank"][str(rank)]), spell(row))


@quick
@given(schedules(("dualpipe", "dualpipe-v")))
def test_both_dualpipes_keep_their_own_step_counts(schedule):
    for rank, row in enumerate(schedule.table):
        assert re.fullmatch(eight_steps(schedule.steps[rank]), spell(row))
        assert row[0][0].chunk == (schedule.copies == 2 and rank >= schedule.ranks // 2)


def spell(row):
    """Write a row as words of kind and phase; phases swap where the row starts with chunk 1."""
    far = row[0][0].chunk == 1
    word = {Kind.FORWARD: "f", Kind.INPUT: "b", Kind.WEIGHT: "w", Kind.BACKWARD: "x"}
    return "".join(
        "&".join(
            word[op.kind] + ("" if op.kind is Kind.WEIGHT else str(op.chunk ^ far)) for op in c
        )
        + " "
        for c in row
    )


def eight_steps(n):
    """The published step order with n[0] to n[7] repetitions; only middle ranks (n[0] = 0) part."""
    first = "(f0 x1 )" if n[0] == 0 else "(f0&x1 )"
    return (
        f"(f0 ){{{n[0]}}}(f0 f1 ){{{n[1]}}}(b1 w f1 ){{{n[2]}}}"
        f"{first}f1&x0 (f0&x1 f1&x0 ){{{n[3] - 1}}}(x1 f1&x0 ){{{n[4]}}}"
        f"(?=((x1 |x0 )*)(b1 |b0 ))([xb]1 [xb]0 ){{{n[5]}}}(w b0 ){{{n[6]}}}(w ){{{n[7]}}}"
    )


@quick
@given(schedules())
def test_weight_gradients_come_in_the_order_of_their_input_gradients(schedule):
    for row in schedule.table:
        ops = [op for cell in row for op in cell]
        order = {
            kind: [(op.stage, op.microbatch) for op in ops if op.kind is kind]
            for kind in (Kind.INPUT, Kind.WEIGHT)
        }
        assert order[Kind.INPUT] == order[Kind.WEIGHT]


@quick
@given(schedules())
def test_peak_activations_are_the_memory_columns(schedule):
    peaks, P = validate(schedule).peak_activations, schedule.stages
    M, ranks = schedule.microbatches, schedule.ranks
    expected = {
        "gpipe": [M] * ranks,
        "1f1b": [min(M, P - rank) for rank in range(ranks)],
        "zb-h1": [min(M, P)] * ranks,
        "zb-v": [P] * ranks,
        "dualpipe": [P + 1] * ranks,
        "dualpipe-v": [P + 1] * ranks,
        "interleaved": [
            min(M * schedule.chunks, 2 * (ranks - rank) - 1 + P - ranks) for rank in range(ranks)
        ],
    }[schedule.name]
    assert list(peaks) == expected


def test_dualpipes_hold_two_stages_a_rank_and_only_dualpipe_two_models():
    held = {name: build(name, 4, 8) for name in NAMES}
    assert [held[name].chunks for name in NAMES] == [1, 1, 2, 1, 2, 2, 2]
    assert [held[name].copies for name in NAMES] == [1, 1, 1, 1, 1, 2, 1]


@quick
@given(schedules())
def test_lockstep_keeps_the_order_and_the_work_and_never_the_wait(schedule):
    steps = lockstep(schedule)
    validate_lockstep(steps)
    for row, slots in zip(schedule.table, steps.table):
        assert list(row) == [cell for cell in slots if cell]
        for cell in slots:
            letters = "".join(op.kind for op in cell)
            assert len(set(letters)) == len(letters)
    assert all(work.idle + len(r) == steps.slots for work, r in zip(steps.work, schedule.table))


@quick
@given(schedules(("zb-h1", "zb-v")))
def test_zero_bubble_tables_are_as_short_in_lockstep_as_their_bubble_allows(schedule):
    work = 3 * schedule.chunks * schedule.microbatches
    slots = lockstep(schedule).slots
    if schedule.microbatches >= schedule.stages:
        assert slots == work + schedule.ranks - 1


@quick
@given(schedules())
def test_splitting_backwards_changes_neither_order_nor_proof(schedule):
    split = split_backward(schedule)
    proof = validate(split)
    assert proof.peak_activations == validate(schedule).peak_activations
    alone = [cell[0].kind for row in split.table for cell in row if len(cell) == 1]
    assert Kind.BACKWARD not in alone


@pytest.mark.parametrize(
    ("arguments", "remedy"),
    [
        (("interleaved", 4, 6), r"choose microbatches 4 or 8$"),
        (("interleaved", 4, 3), r"choose microbatches 4$"),
        (("zb-v", 4, 6), r"choose microbatches >= 7 or ranks <= 3$"),
        (("dualpipe", 5, 20), r"choose ranks 4 or 6$"),
        (("dualpipe", 1, 20), r"choose ranks 2$"),
        (("dualpipe", 4, 6), r"choose microbatches >= 8 or fewer ranks$"),
        (("dualpipe", 4, 9), r"choose 8 or 10$"),
        (("dualpipe-v", 4, 7), r"choose microbatches >= 8 or fewer ranks$"),
        (("gpipe", 0, 4), r"ranks=0 is less than 1; choose ranks >= 1$"),
        (("1f1b", 2, 0), r"choose microbatches >= 1$"),
        (("zigzag", 2, 4), r"choose one of gpipe, 1f1b, .*dualpipe-v$"),
    ],
)
def test_what_a_schedule_cannot_serve_is_refused_with_what_it_can(arguments, remedy):
    with pytest.raises(UserError, match=remedy):
        build(*arguments)


def test_only_interleaved_takes_chunks():
    assert build("interleaved", 2, 4, chunks=3).stages == 6
    with pytest.raises(UserError, match="interleaved"):
        build("1f1b", 2, 4, chunks=2)
    with pytest.raises(UserError, match="chunks=0 is less than 1"):
        build("interleaved", 2, 4, chunks=0)


@quick
@given(st.sampled_from(NAMES), st.integers(-1, 7), st.integers(-1, 17))
def test_every_size_is_either_proved_or_refused_in_a_sentence(name, ranks, microbatches):
    refusal = ""
    try:
        validate(build(name, ranks, microbatches))
    except UserError as error:
        refusal = str(error)
    assert not refusal or "choose" in refusal


def with_row(schedule, rank, row):
    """The schedule with one rank's program replaced."""
    table = (*schedule.table[:rank], row, *schedule.table[rank + 1 :])
    return replace(schedule, table=table)
