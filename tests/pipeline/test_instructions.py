"""Instructions run on labels instead of arrays: every operation finds what it needs where it looks.

Memory is then fixed and small by construction; that it is the table's peak is checked too.
"""

import numpy as np
import pytest

from dsjax.pipeline.instructions import Instructions, compile_table, shortest
from dsjax.pipeline.schedules.build import NAMES, build, latest, lockstep
from dsjax.pipeline.schedules.simulate import Times, lockstep_time, simulate
from dsjax.pipeline.schedules.table import Kind
from dsjax.pipeline.schedules.validate import peak_activations, validate_lockstep

CASES = [(name, ranks) for name in NAMES for ranks in (1, 2, 4, 6)
         if (name, ranks) != ("dualpipe", 1)]


def run_on_labels(program):
    """Follow the instructions as an executor does; returns what ran, by rank."""
    ranks = len(program.stage_of)
    empty = [{"for b": {}, "for w": {}, "x": {}, "gradient": {}} for _ in range(ranks)]
    ran = [[] for _ in range(ranks)]
    for slot in range(program.steps.slots):
        now = [Instructions(*(int(field[r, slot]) for field in program.instructions))
               for r in range(ranks)]
        made = [work(program, r, now[r], empty[r], ran[r]) for r in range(ranks)]
        for r, memory in enumerate(empty):
            for way, source in (("here", r), ("up", (r - 1) % ranks), ("down", (r + 1) % ranks)):
                y, dx = made[source]
                if (place := getattr(now[r], f"y_{way}")) >= 0:
                    memory["x"][place] = y
                if (place := getattr(now[r], f"dx_{way}")) >= 0:
                    memory["gradient"][place] = dx
            if now[r].y_last >= 0:
                memory["gradient"][now[r].y_last] = made[r][0]
    return ran


def work(program, rank, now, memory, ran):
    last, y, dx = program.schedule.stages - 1, None, None
    if now.f_buffer >= 0:
        stage = program.stage_of[rank][now.f_chunk]
        assert (stage == 0) == (now.f_from < 0)
        if stage:
            assert memory["x"].pop(now.f_from) == ("y", stage - 1, now.f_microbatch)
        y = ("y", stage, now.f_microbatch)
        assert now.f_buffer not in memory["for b"]
        memory["for b"][now.f_buffer] = (stage, now.f_microbatch)
        ran.append((Kind.FORWARD, stage, now.f_microbatch))
    if now.b_buffer >= 0:
        stage = program.stage_of[rank][now.b_chunk]
        assert (stage == last, stage == 0) == (now.b_is_last, now.b_is_first)
        wanted = ("y", last) if stage == last else ("dx", stage + 1)
        assert memory["gradient"].pop(now.b_from) == (*wanted, now.b_microbatch)
        assert memory["for b"][now.b_buffer] == (stage, now.b_microbatch)
        dx = ("dx", stage, now.b_microbatch)
        if now.b_for_w >= 0:
            assert now.b_for_w not in memory["for w"]
            memory["for w"][now.b_for_w] = (stage, now.b_microbatch)
        ran.append((Kind.INPUT, stage, now.b_microbatch))
    if now.w_buffer >= 0:
        wanted = (program.stage_of[rank][now.w_chunk], now.w_microbatch)
        assert memory["for b"].pop(now.w_buffer) == wanted
        if now.w_from_b >= 0:
            assert memory["for w"].pop(now.w_from_b) == wanted
        else:
            assert wanted == dx[1:]
        ran.append((Kind.WEIGHT, *wanted))
    assert len(memory["for b"]) <= program.buffers_b
    assert len(memory["for w"]) <= program.buffers_w
    return y, dx


@pytest.mark.parametrize(("name", "ranks"), CASES)
def test_every_operation_runs_once_and_finds_what_it_needs(name, ranks):
    schedule = build(name, ranks, 2 * ranks if name != "1f1b" else 3 * ranks - 1)
    program = compile_table(lockstep(schedule))
    ran = run_on_labels(program)
    for rank, row in enumerate(ran):
        wanted = [(kind, stage, m) for kind in (Kind.FORWARD, Kind.INPUT, Kind.WEIGHT)
                  for m in range(schedule.microbatches)
                  for stage in range(schedule.stages) if schedule.rank_of(stage, m) == rank]
        assert sorted(row) == sorted(wanted)


@pytest.mark.parametrize(("name", "ranks"), CASES)
def test_memory_is_the_peak_of_the_table(name, ranks):
    steps = lockstep(build(name, ranks, 2 * ranks))
    program = compile_table(steps)
    assert program.buffers_b == max(peak_activations(steps.table))
    has_halves = any(op.kind is Kind.WEIGHT for row in steps.table for c in row for op in c)
    assert (program.buffers_w > 0) == has_halves
    assert all(np.max(field) >= -1 for field in program.instructions)


@pytest.mark.parametrize("name", NAMES)
def test_the_form_that_runs_is_the_shortest_by_count(name):
    schedule = build(name, 4, 8)
    chosen, whole = shortest(schedule), lockstep(schedule)
    assert lockstep_time(chosen, Times()) <= lockstep_time(whole, Times())
    assert max(peak_activations(chosen.table)) == max(peak_activations(whole.table))
    program = compile_table(chosen)
    assert program.buffers_b == max(peak_activations(whole.table))
    run_on_labels(program)


def test_inboxes_hold_what_arrived_and_waits():
    """1F1B uses a value one slot after it came; GPipe's last stage keeps every output."""
    boxes = {name: compile_table(shortest(build(name, 4, 8))).inbox for name in NAMES}
    assert boxes == {"gpipe": (1, 8), "1f1b": (1, 1), "interleaved": (3, 3), "zb-h1": (1, 1),
                     "zb-v": (2, 2), "dualpipe": (2, 1), "dualpipe-v": (2, 1)}


def test_a_finer_schedule_is_shorter_in_equal_slots_too():
    """In times of one stage of 1F1B; the stages of ZB-V and interleaved are half as thick."""
    time = {name: lockstep_time(shortest(build(name, 4, 8)), Times())
            / (build(name, 4, 8).stages // 4) for name in NAMES if name != "dualpipe-v"}
    assert time["zb-v"] < time["dualpipe"] < time["zb-h1"] == time["interleaved"] < time["1f1b"]
    assert time["1f1b"] == time["gpipe"] == 30


@pytest.mark.parametrize(("ranks", "microbatches"), [(4, 8), (8, 16), (8, 24), (16, 32), (16, 120)])
def test_with_more_ranks_too_a_finer_schedule_is_shorter(ranks, microbatches):
    """DualPipe beats ZB-H1 by what its pairs save; at no saving slots cost it up to 6 of 110."""
    def slots(name, pair):
        return lockstep_time(shortest(build(name, ranks, microbatches)), Times(overlapped=pair))

    assert slots("zb-h1", 3) < slots("1f1b", 3)
    assert slots("dualpipe", 3) < slots("1f1b", 3)
    assert slots("dualpipe", 2.4) < slots("zb-h1", 2.4)
    free = simulate(build("dualpipe", ranks, microbatches)).makespan
    assert slots("dualpipe", 3) - free <= ranks // 2 - 2


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("ranks", "microbatches"), [(2, 4), (4, 8), (4, 12), (6, 12)])
def test_the_latest_slots_are_a_proved_table_that_is_never_longer(name, ranks, microbatches):
    early = lockstep(build(name, ranks, microbatches))
    late = latest(early)
    validate_lockstep(late)
    for row, same in zip(late.table, early.table):
        assert [cell for cell in row if cell] == [cell for cell in same if cell]
    for times in (Times(), Times(overlapped=2.2), Times(2, 3, 1, 5)):
        assert lockstep_time(late, times) <= lockstep_time(early, times)
    memory, before = compile_table(late), compile_table(early)
    assert (memory.buffers_b, memory.buffers_w) == (before.buffers_b, before.buffers_w)
    run_on_labels(memory)
