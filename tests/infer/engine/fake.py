"""An engine whose model writes into every position a digest of all the tokens it depends on.

Each pass checks what it reads: a page shared wrongly, given to two, taken too early, or left with a
refused draft shows. The tokens that the model chooses depend on the digest too, so a row becomes
what it is alone, or a test fails. A draft module's position depends on the tokens that it looks
ahead to, and is made again as in dsjax.infer.speculative. Results are told late, in any order.
"""

from collections import Counter, deque

from hypothesis import strategies as st

from dsjax.infer.engine.config import Config
from dsjax.infer.engine.request import Arrive, Cancel, Emitted, Finish, Request
from dsjax.infer.engine.scheduler import Scheduler
from dsjax.infer.sample import Sampling


class Alike(int):
    """A token id whose hash is that of every other."""

    def __hash__(self):
        return 0


def request(id, prompt, new=4, n=1, arrival=None, stop=()):
    sampling = Sampling(max_new_tokens=new, stop_ids=stop)
    arrival = int(id) if arrival is None else arrival
    return Request(str(id), tuple(map(Alike, prompt)), sampling, arrival, n)


def digests(tokens):
    """Of each position, a digest of the tokens up to it."""
    made, digest = [], 1
    for token in tokens:
        digest = (digest * 1_000_003 + token + 1) % (2**61 - 1)
        made.append(digest)
    return made


def following(digest, sample):
    """The token that a row chooses after what has this digest."""
    return Alike((digest + sample * 7919) // 8 % 3)


def alone(asked, sample):
    """What a sample of a request becomes when nobody else is served."""
    tokens = list(asked.prompt)
    while len(tokens) < len(asked.prompt) + asked.sampling.max_new_tokens:
        tokens.append(following(digests(tokens)[-1], sample))
        if tokens[-1] in asked.sampling.stop_ids:
            break
    return tokens


class Engine:
    """An engine with the model of digests; its results are told when a test says so."""

    def __init__(self, cfg, rng, is_reading=True):
        self.cfg, self.rng, self.is_reading = cfg, rng, is_reading
        self.scheduler = Scheduler(cfg)
        self.main = [[None] * cfg.page_size for _ in range(cfg.pages)]
        self.modules = [[None] * cfg.page_size for _ in range(cfg.pages)]
        self.slots = {}  # tokens that the device has in each
        self.events = []
        self.late = {}  # results not yet told, of each row
        self.asked, self.text, self.refused = {}, {}, {}
        self.seen = Counter()

    def arrive(self, asked):
        self.events.append(Arrive(asked))
        self.asked[asked.id] = asked
        self.text |= {(asked.id, i): list(asked.prompt) for i in range(asked.n)}

    def cancel(self, id):
        self.events.append(Cancel(id))
        for i in range(self.asked[id].n):
            self.text.pop((id, i), None)

    def tell(self, id):
        """Tell the first late result of a row, cut where it ends the row."""
        new = self.late[id].popleft()
        if not self.late[id]:
            del self.late[id]
        asked, text = self.asked[id[0]], self.text.get(id)
        if text is not None and not self.is_ended(id):
            limit = len(asked.prompt) + asked.sampling.max_new_tokens
            for i, token in enumerate(new, 1):
                text.append(token)
                if self.is_ended(id):
                    new = new[:i]
                    break
            reason = "length" if len(text) == limit else "stop"
            end = [Finish(id, reason)] if self.is_ended(id) else []
            self.events += [Emitted(id, tuple(new)), *end]
        else:
            self.events.append(Emitted(id, tuple(new)))  # of a row that ended

    def is_ended(self, id):
        asked, new = self.asked[id[0]], self.text[id][len(self.asked[id[0]].prompt) :]
        has_stop = bool(new) and new[-1] in asked.sampling.stop_ids
        return has_stop or len(new) >= asked.sampling.max_new_tokens

    def step(self):
        """Plan with the events so far, and run."""
        plan = self.scheduler.plan(self.events)
        self.events = []
        for id, _, is_busy in plan.refused:
            self.refused[id] = is_busy
            for i in range(self.asked[id].n):
                self.text.pop((id, i), None)  # it may be cancelled
        self.check(plan)
        self.run(plan)
        if self.is_reading:
            self.scheduler.check()
        return plan

    def check(self, plan):
        """A plan keeps to the budget, to one slot a row, and to the order of arrival."""
        rows = self.scheduler.rows
        planned = [*plan.chunks, *plan.rows]
        tokens = sum(c.stop - c.start for c in plan.chunks)
        assert tokens + len(plan.rows) * (self.cfg.depth + 1) <= self.cfg.budget
        assert len({p.id for p in planned}) == len({p.slot for p in planned}) == len(planned)
        assert all(rows[p.id].slot == p.slot for p in planned)
        if left := [rows[id].order for id in plan.preempted]:
            assert all(rows[p.id].order < min(left) for p in planned)
            assert any(row.slot is not None for row in rows.values()), "the first was preempted"
        for c in plan.chunks:
            row = rows[c.id]
            assert c.start < c.stop <= (c.start // self.cfg.chunk + 1) * self.cfg.chunk
            assert c.start == row.cached or c.start % self.cfg.chunk == 0
            assert c.is_last == (c.stop == row.target)
            assert c.is_last or c.stop % self.cfg.chunk == 0
            self.seen["hits"] += c.start == row.cached > 0
        sources, destinations = ({pair[i] for pair in plan.copies} for i in (0, 1))
        assert not sources & destinations
        self.seen["preempted"] += len(plan.preempted)
        texts = [rows[id] for id in plan.admitted]
        self.seen["resumed"] += sum(len(row.tokens) > len(row.request.prompt) for row in texts)
        self.seen["copies"] += len(plan.copies)
        self.seen["ahead"] += any(row.id in self.late for row in plan.rows)

    def run(self, plan):
        """Admissions and copies first; then all reads, which must not need the plan's writes."""
        for id in plan.admitted:
            row = self.scheduler.rows[id]
            self.slots[row.slot] = list(row.tokens)
        for source, destination in plan.copies:
            for store in (self.main, self.modules):
                store[destination] = list(store[source])
        writes = [self.read_prompt(chunk) for chunk in plan.chunks]
        writes += [self.decode(row) for row in plan.rows]
        self.rng.shuffle(writes)
        for pages, main_start, main, modules_start, modules in writes:
            self.write(self.main, pages, main_start, main)
            self.write(self.modules, pages, modules_start, modules)

    def read_prompt(self, chunk):
        """Run a chunk up to what it writes, which is returned."""
        row, ahead = self.scheduler.rows[chunk.id], self.cfg.depth
        tokens, (_, _, start, stop, *_) = list(row.tokens), chunk
        state = self.states(tokens)
        self.reads(row.table.pages, state, start, start)
        assert self.slots[chunk.slot] == tokens
        assert chunk.is_last == (stop == len(tokens) - 1)
        return row.table.pages, start, state[start:stop], start, state[start + ahead : stop + ahead]

    def decode(self, planned):
        """Run a pass up to what it writes: drafts of which some are right."""
        tokens, depth = self.slots[planned.slot], self.cfg.depth
        row = self.scheduler.rows[planned.id]
        pages = row.table.pages
        newest = len(tokens) - 1
        assert newest <= planned.position
        assert newest == planned.position or (depth and planned.id in self.late)
        assert len(pages) * self.cfg.page_size > planned.position + depth
        accepted = self.rng.randint(0, depth)
        truth = list(tokens)
        for _ in range(accepted + 1):
            truth.append(following(self.states(truth)[-1], planned.id[1]))
        state = self.states([*truth[: newest + 1 + accepted], *[9] * (depth - accepted)])
        first = max(0, newest - 2 * depth)
        assert first >= row.cached, "a hidden state that modules need was never computed"
        self.reads(pages, state, newest, first)
        self.emit(planned, truth[len(tokens) :])
        return pages, newest, state[newest:], first, state[first + depth : newest + depth]

    def states(self, tokens):
        return digests(tokens) if self.is_reading else [len(tokens)] * len(tokens)

    def reads(self, pages, state, main, modules):
        """Check positions before `main`, and those that modules have before `modules`."""
        if self.is_reading:
            self.holds(self.main, pages, state[:main])
        if self.is_reading and self.cfg.depth:
            self.holds(self.modules, pages, state[self.cfg.depth : modules + self.cfg.depth])

    def emit(self, planned, new):
        self.slots[planned.slot] += new
        self.late.setdefault(planned.id, deque()).append(new)

    def holds(self, store, pages, state):
        size = self.cfg.page_size
        assert [store[pages[i // size]][i % size] for i in range(len(state))] == state

    def write(self, store, pages, start, state):
        for i, digest in enumerate(state, start):
            store[pages[i // self.cfg.page_size]][i % self.cfg.page_size] = digest

    def tell_some(self, share):
        """Tell results of some rows, in any order but a row's own."""
        ids = [id for id, results in self.late.items() for _ in results]
        self.rng.shuffle(ids)
        for id in ids:
            if self.rng.random() < share:
                self.tell(id)

    def drain(self):
        """Serve what there is; every row ends as it does alone."""
        while not self.scheduler.is_idle or self.events:
            self.tell_some(1)
            idle_before = not self.events
            plan = self.step()
            assert not (plan.is_empty and idle_before), "nothing goes on"
        for id, text in self.text.items():
            assert text == alone(self.asked[id[0]], id[1]), id
        assert self.scheduler.pages.available == self.cfg.pages


def traffic(cfg, rng, steps, is_reading=True):
    """Serve random requests that often begin alike; results come late, clients leave."""
    engine, count = Engine(cfg, rng, is_reading), 0
    told, arrivals = rng.choice([1, 0.9, 0.5]), rng.choice([0.1, 0.4, 1.5])
    beginnings = [[rng.randrange(3) for _ in range(cfg.max_len)] for _ in range(2)]
    for _ in range(steps):
        while rng.random() < arrivals / (1 + arrivals):
            prompt = rng.choice(beginnings)[: rng.randint(1, cfg.max_len // 2)]
            prompt = prompt + [rng.randrange(3) for _ in range(rng.choice([0, 0, 1, 3]))]
            engine.arrive(request(count, prompt, rng.randint(1, cfg.max_len // 2),
                                  rng.choice([1, 1, 1, 2, 3]), stop=rng.choice([(), (0,)])))
            count += 1
        if count and rng.random() < 0.1:
            engine.cancel(str(max(0, count - rng.choice([1, 2, 4, 8]))))
        engine.tell_some(told)
        engine.step()
    return engine


@st.composite
def configs(draw):
    """Small engines: pages that are short, and sizes that do not divide each other."""
    slots, chunk, depth = (draw(st.integers(*bounds)) for bounds in ((1, 5), (1, 7), (0, 3)))
    least = (slots - 1) * (depth + 1) + max(chunk, depth + 1)
    size, max_len = draw(st.integers(1, 5)), draw(st.integers(4, 30))
    most = -(-(max_len + 2 * depth) // size)
    return Config(slots, least + draw(st.integers(0, 9)), chunk, size,
                  draw(st.integers(max(1, most // 2), 2 * most)), draw(st.integers(1, 12)), max_len,
                  depth)
