"""Whatever comes in whatever order, each row reads its own tokens only, and every row ends."""

import random
import time
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsjax.errors import UserError
from dsjax.infer.engine.config import Config
from dsjax.infer.engine.request import Arrive, Cancel, Emitted, Finish
from dsjax.infer.engine.scheduler import Scheduler
from tests.infer.engine.fake import Engine, configs, request, traffic

PLAIN = Config(slots=4, budget=16, chunk=4, page_size=4, pages=64, max_queue=8, max_len=64)


@settings(max_examples=400, deadline=None, database=None)
@given(configs(), st.integers(0, 2**32))
def test_rows_read_their_own_tokens_and_end_whatever_the_traffic(cfg, seed):
    traffic(cfg, random.Random(seed), 40).drain()


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_the_traffic_of_these_tests_meets_every_case(depth):
    seen, refused = Counter(), Counter()
    for seed in range(8):
        cfg = replace(PLAIN, depth=depth, pages=14, page_size=2, max_len=24 - 2 * depth)
        engine = traffic(cfg, random.Random(seed), 100)
        engine.drain()
        seen += engine.seen
        refused += Counter(engine.refused.values())
    assert min(seen[case] for case in ("hits", "preempted", "resumed", "copies", "ahead")) > 5, seen
    assert refused[True] > 5


@pytest.mark.exhaustive
@pytest.mark.parametrize("depth", [0, 2])
def test_half_a_million_steps_end(depth):
    rng, steps = random.Random(depth), 0
    while steps < 500_000:
        cfg = replace(PLAIN, depth=depth, pages=rng.randint(30, 90), max_queue=rng.randint(4, 40))
        engine = traffic(cfg, rng, 10_000, is_reading=False)
        steps += 10_000
        while not engine.scheduler.is_idle:
            engine.tell_some(1)
            engine.step()
            steps += 1
        engine.scheduler.check()
        assert engine.scheduler.pages.available == cfg.pages


def serve(cfg, *requests):
    """An engine with requests, before its first step."""
    engine = Engine(cfg, random.Random(0))
    for asked in requests:
        engine.arrive(asked)
    return engine


def next_plan(engine):
    """The plan after all results are told."""
    engine.tell_some(1)
    return engine.step()


def test_rows_go_first_and_prompts_share_what_is_left_by_arrival():
    engine = serve(replace(PLAIN, budget=8), request(0, [0] * 3), request(1, [1] * 9),
                   request(2, [2] * 5))
    first = engine.step()
    assert [(c.id[0], c.start, c.stop) for c in first.chunks] == [("0", 0, 2), ("1", 0, 4)]
    second = next_plan(engine)
    assert [(r.id[0], r.position) for r in second.rows] == [("0", 2)]
    assert [(c.id[0], c.start, c.stop) for c in second.chunks] == [("1", 4, 8)]
    engine.drain()


def test_chunks_end_at_the_same_places_after_a_hit():
    engine = serve(replace(PLAIN, chunk=5, page_size=3), request(0, range(14), new=1))
    engine.drain()
    engine.arrive(request(1, [*range(7), 0, 0, 0, 0, 0, 0], new=1))
    chunks = [chunk for _ in range(2) for chunk in next_plan(engine).chunks]
    assert [(c.start, c.stop, c.is_last) for c in chunks] == [(6, 10, False), (10, 12, True)]


def test_a_prompt_that_is_cached_as_a_whole_still_has_a_token_to_compute():
    engine = serve(PLAIN, request(0, range(8), new=1))
    engine.drain()
    engine.arrive(request(1, range(8), new=1))
    (chunk,) = engine.step().chunks
    assert (chunk.start, chunk.stop, chunk.is_last) == (4, 7, True)


def test_the_last_arrival_is_preempted_and_goes_on_where_it_was():
    cfg = replace(PLAIN, page_size=2, pages=9)
    engine = serve(cfg, request(1, [1, 1, 1], new=14), request(0, [0, 0, 0], new=14))
    preempted = []
    while not preempted:
        preempted = next_plan(engine).preempted
    assert preempted == [("1", 0)]  # by arrival, not by order of the events
    had = len(engine.text["1", 0])
    plans = []
    while ("1", 0) in engine.scheduler.rows:
        plans.append(next_plan(engine))
    chunks = [c for plan in plans for c in plan.chunks]
    assert chunks[0].start > 0  # its own pages, as far as they were not taken
    assert (chunks[-1].stop, chunks[-1].is_last) == (had - 1, True)
    engine.drain()


@pytest.mark.parametrize("depth", [0, 2])
def test_a_step_is_planned_before_the_results_of_the_last_but_not_of_the_one_before(depth):
    engine = serve(replace(PLAIN, depth=depth, max_len=30), request(0, [0, 1], new=20))
    engine.step()
    assert [engine.step().rows[0].position for _ in range(2)] == [1, 2 + depth]
    assert engine.step().is_empty
    engine.tell(("0", 0))
    assert engine.step().rows[0].position == len(engine.text["0", 0]) + depth
    engine.tell_some(1)
    assert engine.step().rows[0].position == len(engine.text["0", 0]) - 1


def test_no_pass_is_planned_beyond_a_rows_length():
    engine = serve(PLAIN, request(0, [0, 1], new=3))
    assert [len(engine.step().chunks), *(len(engine.step().rows) for _ in range(2))] == [1, 1, 1]
    engine.tell(("0", 0))
    assert len(engine.step().rows) == 1
    engine.tell(("0", 0))
    assert engine.step().is_empty  # its third token is under way
    engine.drain()


def test_cancelling_frees_what_nobody_else_has_in_the_next_plan():
    cfg = replace(PLAIN, pages=6, max_len=24)
    engine = serve(cfg, request(0, [*range(4), 1, 1], new=9))
    next_plan(engine)
    next_plan(engine)
    engine.arrive(request(1, [*range(4), 2, 2], new=6))
    next_plan(engine)
    shared = engine.scheduler.rows["1", 0].table.pages[0]
    assert shared == engine.scheduler.rows["0", 0].table.pages[0]
    engine.cancel("0")
    engine.arrive(request(2, [3] * 12, new=1))  # needs what the cancelled one had
    assert next_plan(engine).chunks[0].id == ("2", 0)
    assert engine.scheduler.rows["1", 0].table.pages[0] == shared
    engine.drain()


def test_samples_wait_for_one_prompt_and_share_its_pages_while_others_pass():
    engine = serve(replace(PLAIN, slots=5), request(0, range(10), n=3), request(1, [7] * 3))
    first, second, third = (next_plan(engine) for _ in range(3))
    assert [c.id for c in first.chunks] == [("0", 0), ("1", 0)]
    assert [c.id for c in second.chunks + third.chunks] == [("0", 0)] * 2
    fourth = next_plan(engine)
    assert fourth.admitted == [("0", 1), ("0", 2)]
    assert not fourth.chunks
    tables = [engine.scheduler.rows["0", i].table.pages for i in range(3)]
    assert tables[0][:2] == tables[1][:2] == tables[2][:2]
    assert fourth.copies == [(tables[0][2], tables[1][2]), (tables[0][2], tables[2][2])]
    engine.drain()


@pytest.mark.parametrize(("changed", "cause", "is_busy"), [
    ({"new": 60}, "64", False), ({"new": 30}, "9 pages", False), ({"n": 5}, "n=5", False),
    ({"id": 0}, "id", False), ({"n": 3}, "1 of at most 3 rows wait", True)])
def test_what_cannot_be_served_is_refused_with_the_cause(changed, cause, is_busy):
    cfg = replace(PLAIN, slots=4, pages=8, max_queue=3)
    engine = serve(cfg, request(0, [0]))
    engine.scheduler.plan([Arrive(request(8, [8])), Arrive(request(9, [9] * 9))])
    asked = request(**{"id": 1, "prompt": [1] * 5} | changed)
    events = [Arrive(request(7, [7])), Arrive(asked)]
    if "id" in changed:
        events[0] = Arrive(request(0, [0]))
    (refused,) = engine.scheduler.plan(events).refused
    assert refused.id == asked.id
    assert cause in refused.reason
    assert refused.is_busy is is_busy


@pytest.mark.parametrize("changed", [{"slots": 0}, {"chunk": 0}, {"pages": 0}, {"max_queue": 0},
                                     {"page_size": 0}, {"max_len": 0}, {"depth": -1},
                                     {"budget": 6}, {"budget": 8, "depth": 2, "chunk": 1}])
def test_sizes_with_which_requests_wait_forever_are_refused(changed):
    with pytest.raises(UserError, match=next(iter(changed))):
        replace(PLAIN, **changed)


def test_a_prompt_that_does_not_fit_yet_is_not_looked_up_again_in_every_step(monkeypatch):
    engine = serve(replace(PLAIN, pages=16), request(0, [0] * 24, new=40), request(1, [1] * 40))
    looked_up = []
    match = engine.scheduler.pages.match
    monkeypatch.setattr(engine.scheduler.pages, "match",
                        lambda tokens, keep: looked_up.append(len(tokens)) or match(tokens, keep))
    for _ in range(30):
        next_plan(engine)
    assert looked_up == [24, 40]
    engine.drain()


def test_events_of_rows_that_ended_are_ignored():
    engine = serve(PLAIN, request(0, [0, 1]))
    engine.step()
    engine.cancel("0")
    engine.tell_some(1)
    for event in (Finish(("0", 0), "stop"), Emitted(("5", 0), (1,)), Cancel("0"), Cancel("5")):
        engine.events.append(event)
    assert engine.step().is_empty
    assert engine.scheduler.is_idle
    assert engine.scheduler.pages.available == PLAIN.pages


@pytest.mark.exhaustive
def test_host_time_of_a_step(capsys):
    table = ["rows  depth  us a step, median      99%  largest of 2000"]
    for rows, depth in ((1, 0), (16, 0), (16, 1), (64, 0)):
        cfg = Config(rows, 64 * rows + 512, 512, 16, 300 * rows, rows, 4096, depth)
        scheduler = Scheduler(cfg)
        events = [Arrive(replace(request(i, [0], 3000), prompt=(i,) * 512)) for i in range(rows)]
        taken = []
        for _ in range(2000):
            start = time.perf_counter()
            plan = scheduler.plan(events)
            taken.append(time.perf_counter() - start)
            events = [Emitted(p.id, (0,)) for p in plan.rows]
        taken = sorted(taken)
        median, most, largest = (taken[i] * 1e6 for i in (1000, 1979, 1999))
        table.append(f"{rows:4} {depth:6} {median:18.0f} {most:8.0f} {largest:15.0f}")
    with capsys.disabled():
        print("", *table, sep="\n")
