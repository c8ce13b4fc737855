"""A page is shared by prompts that begin with the same tokens, never by others, and none is lost.

The model of these tests writes into every position all the tokens that it depends on, so that a
wrong share shows as wrong content, whichever account caused it.
"""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from dsjax.infer.engine.pages import Pages, Table


class Alike(int):
    """A token id whose hash is that of every other."""

    def __hash__(self):
        return 0


def written(pages, tokens):
    """A table with all whole pages of `tokens`, computed and published."""
    table = pages.match(tokens)
    table.pages += pages.allocate(pages.needed(len(tokens)) - len(table.pages))
    pages.publish(table, tokens, len(tokens))
    return table


def hit(pages, tokens, keep=1):
    """Pages that a prompt finds; they are given back."""
    table = pages.match(tokens, keep)
    found = list(table.pages)
    pages.release(table)
    return found


@pytest.mark.parametrize("length", range(1, 14))
def test_a_hit_leaves_the_last_token_to_be_computed(length):
    pages, tokens = Pages(8, 4), list(range(length))
    written(pages, tokens)
    assert len(hit(pages, tokens)) == (length - 1) // 4
    assert len(hit(pages, [*tokens, 99])) == length // 4


def test_more_tokens_are_left_where_more_are_asked_for():
    pages, tokens = Pages(8, 4), list(range(12))
    written(pages, tokens)
    assert [len(hit(pages, tokens, keep)) for keep in (1, 4, 5, 8, 9, 12, 99)] == [
        2, 2, 1, 1, 0, 0, 0]


def test_a_prompt_shares_up_to_its_first_other_token():
    pages, tokens = Pages(9, 2), [1, 2, 3, 4, 5, 6]
    table = written(pages, tokens)
    for at in range(6):
        other = [*tokens, 7, 8]
        other[at] = 9
        assert hit(pages, other) == table.pages[: at // 2]


def test_tokens_whose_hashes_collide_are_told_apart():
    pages = Pages(9, 2)
    prompts = [[Alike(t) for t in tokens] for tokens in ([1, 2, 0], [1, 3, 0], [3, 1, 0], [2, 1])]
    tables = [written(pages, prompt) for prompt in prompts]
    assert [hit(pages, [*prompt, 0]) for prompt in prompts] == [t.pages[:1] for t in tables]
    assert hit(pages, [Alike(2), Alike(2), 0]) == []


def test_the_same_tokens_after_another_beginning_are_another_page():
    pages = Pages(9, 2)
    one, two = written(pages, [1, 1, 5, 5]), written(pages, [2, 2, 5, 5])
    assert not set(one.pages) & set(two.pages)
    assert hit(pages, [2, 2, 5, 5, 0]) == two.pages


def test_what_modules_read_ahead_belongs_to_a_page():
    pages, tokens = Pages(9, 2, ahead=1), [1, 2, 3, 4, 5]
    table = Table(pages.allocate(3))
    pages.publish(table, tokens, 4)
    assert hit(pages, [1, 2, 3, 9, 9]) == table.pages[:1]
    assert hit(pages, [1, 2, 9, 9, 9]) == []
    assert hit(pages, [1, 2, 3, 4, 5, 6]) == table.pages[:2]


def test_only_pages_within_the_committed_positions_are_published():
    pages, tokens = Pages(9, 4), list(range(13))
    table = Table(pages.allocate(4))
    for committed in range(14):
        pages.publish(table, tokens, committed)
        assert hit(pages, tokens) == table.pages[: min(committed, 12) // 4]


@pytest.mark.parametrize(("n", "left"), enumerate([(2, 2), (2, 1), (2, 0), (1, 0), (0, 0)]))
def test_the_least_recently_used_page_is_evicted_after_what_continues_it(n, left):
    pages = Pages(4, 1)
    for prompt in ([1, 2], [3, 4]):
        pages.release(written(pages, prompt))
    assert hit(pages, [1, 2, 0])  # used again
    pages.allocate(n)
    assert (len(hit(pages, [1, 2, 0])), len(hit(pages, [3, 4, 0]))) == left


def test_a_page_that_holds_something_else_does_not_bring_back_what_continued_it():
    pages = Pages(3, 2)
    twin = Table(pages.allocate(2))  # computes [1, 1, 2, 2] beside another row
    first = written(pages, [1, 1])
    pages.publish(twin, [1, 1, 2, 2], 4)  # its second page continues the other row's
    pages.release(first)
    reused = Table(pages.allocate(1))  # evicts [1, 1]
    pages.publish(reused, [9, 9], 2)
    assert hit(pages, [9, 9, 2, 2, 0]) == reused.pages
    assert hit(pages, [1, 1, 2, 2, 0]) == []
    pages.check([twin, reused])


def test_too_few_pages_are_none_and_change_nothing():
    pages = Pages(3, 2)
    table = written(pages, [1, 2, 3, 4])
    assert pages.allocate(2) is None
    assert pages.fork(Table([*table.pages, *pages.allocate(1)]), 5) is None
    assert pages.available == 0
    assert hit(pages, [1, 2, 3, 4, 5]) == table.pages


@pytest.mark.parametrize("length", range(8))
def test_a_fork_shares_whole_pages_and_copies_the_last(length):
    pages, tokens = Pages(8, 3), list(range(8))
    table = written(pages, tokens)
    forked, copies = pages.fork(table, length)
    assert forked.pages[: length // 3] == table.pages[: length // 3]
    assert copies == ([(table.pages[length // 3], forked.pages[-1])] if length % 3 else [])
    assert len(forked.pages) == pages.needed(length)
    pages.check([table, forked])
    pages.release(table)
    pages.publish(forked, tokens, length)
    assert hit(pages, [*tokens[:length], 99])[: length // 3] == forked.pages[: length // 3]
    pages.check([forked])


def test_a_fork_goes_its_own_way_where_the_other_row_was_published_further():
    pages, tokens = Pages(9, 2), [0, 1, 2, 3, 4, 5]
    table = written(pages, tokens)
    forked, _ = pages.fork(table, 2)
    forked.pages += pages.allocate(3)
    pages.publish(forked, [0, 1, 9, 9, 8, 8, 7, 7], 8)
    assert hit(pages, [*tokens, 7, 7, 0]) == table.pages
    assert hit(pages, [0, 1, 9, 9, 8, 8, 7, 7, 0]) == forked.pages
    pages.check([table, forked])


def test_a_page_of_two_rows_is_published_once_though_they_found_its_beginning_differently():
    pages = Pages(4, 1)
    first, table = written(pages, [1]), Table(pages.allocate(2))
    forked, _ = pages.fork(table, 2)
    pages.publish(table, [1, 2], 2)  # continues the page of `first`
    pages.release(first)
    others = Table(pages.allocate(2))  # evicts it
    pages.publish(forked, [1, 2], 2)  # publishes its own
    pages.check([table, forked, others])


def test_a_table_released_twice_is_an_error_only_where_it_has_pages():
    pages = Pages(2, 2)
    table = Table(pages.allocate(1))
    again = Table(list(table.pages))
    pages.release(table)
    pages.release(table)
    with pytest.raises(AssertionError, match="in no table"):
        pages.release(again)


class Traffic(RuleBasedStateMachine):
    """Rows that match, grow, publish, fork and end in any order."""

    @initialize(count=st.integers(1, 9), size=st.integers(1, 3), ahead=st.integers(0, 2))
    def start(self, count, size, ahead):
        self.pages = Pages(count, size, ahead)
        self.held = [[None] * size for _ in range(count)]
        self.rows = []  # (table, tokens, positions written)

    def write(self, table, tokens, start, stop):
        """Write positions, each with all the tokens it depends on."""
        size = self.pages.size
        for i in range(start, stop):
            self.held[table.pages[i // size]][i % size] = tokens[: i + 1 + self.pages.ahead]

    def grow(self, table, tokens, start, stop):
        """Compute positions, if there are pages for them, publish them and keep the row."""
        more = self.pages.allocate(max(0, self.pages.needed(stop) - len(table.pages)))
        if more is None:
            self.pages.release(table)
            return
        table.pages += more
        self.write(table, tokens, start, stop)
        self.pages.publish(table, tokens, stop - self.pages.ahead)
        self.rows.append((table, tokens, stop))

    @rule(tokens=st.lists(st.integers(0, 1).map(Alike), min_size=1, max_size=9))
    def arrive(self, tokens):
        table = self.pages.match(tokens)
        found = len(table.pages) * self.pages.size
        assert found < len(tokens)
        self.grow(table, tokens, found, len(tokens))

    @precondition(lambda self: self.rows)
    @rule(data=st.data(), more=st.lists(st.integers(0, 1).map(Alike), min_size=1, max_size=4))
    def go_on(self, data, more):
        table, tokens, written = self.rows.pop(data.draw(st.integers(0, len(self.rows) - 1)))
        start = max(0, written - self.pages.ahead)  # what looked ahead beyond the tokens
        self.grow(table, tokens + more, start, written + len(more))

    @precondition(lambda self: self.rows)
    @rule(data=st.data(), other=st.lists(st.integers(0, 1).map(Alike), min_size=1, max_size=4))
    def fork(self, data, other):
        table, tokens, written = data.draw(st.sampled_from(self.rows))
        length = data.draw(st.integers(0, max(0, written - self.pages.ahead)))
        if forked := self.pages.fork(table, length):
            new, copies = forked
            for source, destination in copies:
                self.held[destination] = list(self.held[source])
            tokens = tokens[: length + self.pages.ahead] + other
            self.grow(new, tokens, length, len(tokens))

    @precondition(lambda self: self.rows)
    @rule(data=st.data())
    def end(self, data):
        self.pages.release(self.rows.pop(data.draw(st.integers(0, len(self.rows) - 1)))[0])

    @invariant()
    def rows_read_what_they_would_have_written(self):
        size, ahead = self.pages.size, self.pages.ahead
        for table, tokens, written in self.rows:
            held = [self.held[table.pages[i // size]][i % size] for i in range(written - ahead)]
            assert held == [tokens[: i + 1 + ahead] for i in range(written - ahead)]
        self.pages.check([table for table, *_ in self.rows])


TestTraffic = Traffic.TestCase
TestTraffic.settings = settings(max_examples=150, stateful_step_count=30, deadline=None,
                                database=None)
