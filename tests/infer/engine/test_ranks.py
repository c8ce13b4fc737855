"""Every rank keeps its own account, and nobody waits while a rank has a slot for him."""

import dataclasses
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from dsjax.infer.engine.config import Config
from dsjax.infer.engine.ranks import Ranks
from dsjax.infer.engine.request import Arrive, Cancel, Emitted, Finish, Request
from dsjax.infer.sample import Sampling

CFG = Config(slots=3, budget=12, chunk=4, page_size=2, pages=10, max_queue=50, max_len=16)


def request(number, prompt, new=3):
    return Request(str(number), tuple(prompt), Sampling(max_new_tokens=new), number)


class Served:
    """Ranks whose rows all say their number, told one step later."""

    def __init__(self, count, cfg=CFG):
        self.ranks, self.events, self.rank, self.said = Ranks(cfg, count), [], {}, Counter()
        self.late = []
        self.first = {}  # the step in which each was admitted
        self.steps = 0

    def step(self):
        news, self.events = self.events + self.late, []
        plans = self.ranks.plan(news)
        self.late = []
        for rank, plan in enumerate(plans):
            assert not plan.refused
            for id in plan.admitted:
                assert self.rank.setdefault(id[0], rank) == rank, "a request changed its rank"
                self.first.setdefault(id[0], self.steps)
            for row in plan.rows:
                self.said[row.id[0]] += 1
                self.late.append(Emitted(row.id, (7,)))
                if self.said[row.id[0]] == self.ranks.find(row.id).request.sampling.max_new_tokens:
                    self.late.append(Finish(row.id, "length"))
        self.steps += 1
        for scheduler in self.ranks.schedulers:
            scheduler.check()
            pages = scheduler.pages
            owned = len({page for row in scheduler.rows.values() for page in row.table.pages})
            assert pages.free + owned + (pages.available - pages.free) == pages.count
        return plans

    def drain(self):
        for _ in range(500):
            if all(plan.is_empty for plan in self.step()) and not self.late:
                return
        raise AssertionError("a request never ends")


plans = st.lists(st.tuples(
    st.integers(0, 2),  # steps before it comes
    st.integers(1, 10),  # tokens of its prompt
    st.integers(0, 2),  # what it begins with
    st.one_of(st.none(), st.integers(1, 6)),  # steps after which it is cancelled
), min_size=1, max_size=30)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(plans, st.integers(1, 4))
def test_every_request_ends_where_it_began_and_no_page_is_lost(plan, count):
    served, leaving, left = Served(count), [], set()

    def step():
        for one in leaving:
            one[0] -= 1
            if one[0] == 0:
                served.events.append(Cancel(one[1]))
                left.add(one[1])
        served.step()
        for id in left:
            assert served.ranks.find((id, 0)) is None

    for number, (wait, length, start, cancelled) in enumerate(plan):
        for _ in range(wait):
            step()
        served.events.append(Arrive(request(number, [start] * length)))
        if cancelled is not None:
            leaving.append([cancelled, str(number)])
    for _ in range(7):
        step()
    served.drain()
    for number in range(len(plan)):
        if str(number) not in left:
            assert served.said[str(number)] == 3
    assert served.ranks.running == 0
    assert not any(scheduler.rows for scheduler in served.ranks.schedulers)
    # all prompts are short, so slots alone are waited for
    kept = [served.first[str(n)] for n in range(len(plan)) if str(n) in served.first]
    if count > 1 and not left:
        assert kept == sorted(kept)


def test_requests_of_one_kind_spread_evenly():
    served = Served(3)
    served.events += [Arrive(request(n, [n])) for n in range(9)]
    served.step()
    assert Counter(served.rank.values()) == {0: 3, 1: 3, 2: 3}


def test_who_comes_later_waits_for_any_rank_and_no_step_longer():
    served = Served(2)
    served.events += [Arrive(request(n, [n], new=8 if n % 2 else 3)) for n in range(6)]
    served.events.append(Arrive(request(6, [6])))
    while not served.ranks.find(("6", 0)):
        assert served.ranks.running <= 6
        served.step()
    assert served.rank["6"] == 0  # whose rows were the shorter ones
    # admitted, three passes, then the step that is told of their end, whose plan admits
    assert served.first["6"] == 4


def test_a_request_goes_where_its_prompts_beginning_is_unless_that_rank_is_busier():
    served = Served(2, dataclasses.replace(CFG, pages=40, slots=9, budget=20))  # two rows are near
    text = [1, 2, 3, 4, 5]
    served.events += [Arrive(request(0, [9], new=9)), Arrive(request(1, text, new=9))]
    served.step()
    assert served.rank == {"0": 0, "1": 1}
    served.step()
    served.events.append(Arrive(request(2, text, new=9)))  # both have a row
    served.step()
    served.events.append(Arrive(request(3, text, new=9)))  # rank 1 has one row more
    served.step()
    assert (served.rank["2"], served.rank["3"]) == (1, 1)
    assert served.ranks.find(("3", 0)).cached == 4
    for number in (4, 5):  # two rows more, then three
        served.events.append(Arrive(request(number, text, new=9)))
        served.step()
    assert (served.rank["4"], served.rank["5"]) == (1, 0)


def test_one_who_waits_for_a_rank_can_leave():
    served = Served(2)
    served.events += [Arrive(request(n, [n])) for n in range(8)] + [Cancel("6")]
    served.drain()
    assert "6" not in served.rank
    assert served.said["7"] == 3
