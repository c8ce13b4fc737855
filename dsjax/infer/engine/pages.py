"""Pages of the cache: who holds which, and which hold the beginning of a prompt already.

The cache is `count` pages of `size` positions. A row's table lists its pages in order: position i
lies in page table[i // size] at i % size. Every page is in one state:

    owned    in one or more tables, and counted once for each
    cached   in no table, but published: what it holds is known, and may be hit
    free     the rest

A page is published once all of its positions are final. Its key is the identity of the page before
it and its own token ids, so the key of a page says every token up to its end. The index of keys is
a dict: a hit compares the ids themselves, and tokens whose hashes collide only cost time. An
identity is given once and never again. What continued an evicted page is therefore never taken for
a continuation of what the same page holds next.

Draft modules look ahead: module k writes position i from token i + k. With `ahead` of them, a
page depends on as many tokens after its end, and these belong to its key.

When nothing is free, the cached page that was used least recently is evicted. Tables are released
from their end, so that pages go before those that they continue.

Time is O(1) a page for everything but `check`.
"""

from __future__ import annotations

import itertools
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

Key = tuple[int, tuple[int, ...]]
"""Identity of the page before (ROOT for the first), and token ids."""

ROOT = 0


@dataclass(eq=False, slots=True)
class Table:
    """Pages of one row, in the order of its positions."""

    pages: list[int] = field(default_factory=list)
    chain: list[int] = field(default_factory=list)
    """Identities of what the first pages hold, as far as it is published, here or elsewhere."""


class Pages:
    """Accounts of all pages; what they hold is the caller's."""

    def __init__(self, count: int, size: int, ahead: int = 0):
        self.count, self.size, self.ahead = count, size, ahead
        self._references = [0] * count
        self._free = list(reversed(range(count)))
        self._cached: OrderedDict[int, None] = OrderedDict()  # least recently used first
        self._index: dict[Key, int] = {}
        self._key: list[Key | None] = [None] * count  # of published pages
        self._identity = [ROOT] * count  # of published pages
        self._identities = itertools.count(ROOT + 1)

    @property
    def free(self) -> int:
        """Pages that hold nothing."""
        return len(self._free)

    @property
    def available(self) -> int:
        """Pages that `allocate` can give."""
        return len(self._free) + len(self._cached)

    def needed(self, positions: int) -> int:
        """Pages that hold so many positions."""
        return -(-positions // self.size)

    def match(self, tokens: Sequence[int], keep: int = 1) -> Table:
        """Share the published pages that begin `tokens`, up to the first that is missing.

        At least the last `keep` tokens stay to be computed, so a prompt that is cached as a whole
        still has a query. Only whole pages are shared, and nobody writes in them again but what is
        there. The table is the caller's to release.
        """
        assert keep > 0, "a prompt without a token to compute has no query"
        table = Table()
        for page in self._published(tokens, keep):
            self._refer(page)
            table.pages.append(page)
            table.chain.append(self._identity[page])
        return table

    def found(self, tokens: Sequence[int]) -> int:
        """Published pages that begin `tokens`; nothing is shared."""
        return sum(1 for _ in self._published(tokens, 1))

    def _published(self, tokens: Sequence[int], keep: int) -> Iterator[int]:
        """Pages that begin `tokens`, up to the first that is missing."""
        identity = ROOT
        for end in range(self.size, len(tokens) - keep + 1, self.size):
            page = self._index.get(self._key_at(identity, tokens, end))
            if page is None:
                return
            yield page
            identity = self._identity[page]

    def allocate(self, n: int) -> list[int] | None:
        """Take n pages to write in, evicting cached ones; None, and nothing changed, if too few."""
        if n > self.available:
            return None
        pages = [self._free.pop() if self._free else self._evict() for _ in range(n)]
        for page in pages:
            self._references[page] = 1
        return pages

    def publish(self, table: Table, tokens: Sequence[int], committed: int) -> None:
        """Let others find the pages of a table that end within its `committed` positions.

        Committed are positions that hold what `tokens` say and will hold nothing else: no draft
        that may be refused, nothing that a module makes again. `tokens` reach `ahead` beyond them.
        A page whose contents are published already, in another page, stays private.
        """
        chain = table.chain
        while (end := (len(chain) + 1) * self.size) <= committed:
            page = table.pages[len(chain)]
            if self._key[page] is None:
                key = self._key_at(chain[-1] if chain else ROOT, tokens, end)
                found = self._index.setdefault(key, page)
                if found == page:
                    self._key[page] = key
                    self._identity[page] = next(self._identities)
            else:  # by the other row of a fork
                found = page
            chain.append(self._identity[found])

    def release(self, table: Table) -> None:
        """Give up a table, which is empty then; what others hold or may hit stays."""
        for page in reversed(table.pages):
            assert self._references[page] > 0, f"page {page} is released but in no table"
            self._references[page] -= 1
            if not self._references[page]:
                if self._key[page] is None:
                    self._free.append(page)
                else:
                    self._cached[page] = None
        table.pages.clear()
        table.chain.clear()

    def fork(self, table: Table, length: int) -> tuple[Table, list[tuple[int, int]]] | None:
        """Share the first `length` positions of a table, which are written and stay as they are.

        Whole pages are shared. A last page in part is copied on the device before either row
        writes again: returns the new table and the copies, (source, destination). None, and nothing
        changed, if there is no page for the copy.
        """
        whole = length // self.size
        last = self.allocate(1 if length % self.size else 0)
        if last is None:
            return None
        for page in table.pages[:whole]:
            self._refer(page)
        copies = [(table.pages[whole], page) for page in last]
        return Table(table.pages[:whole] + last, table.chain[:whole]), copies

    def check(self, tables: Iterable[Table]) -> None:
        """Assert that accounts are consistent if `tables` are all there are."""
        counts = Counter(page for table in tables for page in table.pages)
        assert self._references == [counts[page] for page in range(self.count)]
        states = [*counts, *self._cached, *self._free]
        assert sorted(states) == list(range(self.count)), "a page has no state, or two"
        published = {key: page for page, key in enumerate(self._key) if key is not None}
        assert self._index == published, "the index does not say what pages hold"
        assert self._cached.keys() <= set(published.values()), "a cached page cannot be found"
        assert not set(self._free) & set(published.values()), "a free page can be found"
        assert len({self._identity[page] for page in published.values()}) == len(published)

    def _key_at(self, identity: int, tokens: Sequence[int], end: int) -> Key:
        """Key of the page that ends at a position."""
        return identity, tuple(tokens[end - self.size : end + self.ahead])

    def _refer(self, page: int) -> None:
        """Count one more table that has a page."""
        if not self._references[page]:
            del self._cached[page]
        self._references[page] += 1

    def _evict(self) -> int:
        """Forget what the least recently used cached page holds."""
        page, _ = self._cached.popitem(last=False)
        key = self._key[page]
        assert key is not None, f"page {page} is cached but not published"
        del self._index[key]
        self._key[page] = None
        return page
