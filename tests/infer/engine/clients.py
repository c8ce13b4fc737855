"""Requests to a small engine, what they got, and the engine stepped with its accounts checked."""

import dataclasses

import numpy as np
from hypothesis import strategies as st

from dsjax.infer import Sampling
from dsjax.infer.engine.device import Setting
from tests import agreement

EXPERTS = dataclasses.replace(agreement.TINY, vocab=7, layers=2, mtp_depth=1)
SETTING = Setting(slots=3, max_len=40, pages=16, page_size=4, chunk=8, budget=24, max_queue=9,
                  top_logprobs=3)


def prompts(count):
    """Texts of 1 to 20 tokens; those of two tokens and more begin with different pages."""
    draw = np.random.default_rng(5)
    lengths = (1, 2, 5, 8, 9, 13, 16, 20)[:count]
    made = [draw.integers(0, EXPERTS.vocab, n).tolist() for n in lengths]
    for i, prompt in enumerate(made):
        prompt[0] = i % EXPERTS.vocab
    return made


SAMPLINGS = [Sampling(0.0, max_new_tokens=12), Sampling(0.9, max_new_tokens=9, seed=4),
             Sampling(0.7, top_p=0.8, max_new_tokens=14, seed=5),
             Sampling(1.0, top_k=3, max_new_tokens=12, seed=6),
             Sampling(1.2, min_p=0.1, presence_penalty=0.7, max_new_tokens=8, seed=7),
             Sampling(0.0, repetition_penalty=1.5, max_new_tokens=13),
             Sampling(1.0, max_new_tokens=20, stop_ids=(2,), seed=9),
             Sampling(0.5, frequency_penalty=0.4, max_new_tokens=12, seed=1)]
REQUESTS = list(zip(prompts(8), SAMPLINGS))


class Client:
    """Collects what came of one request."""

    def __init__(self, engine, prompt, sampling, top=0):
        self.tokens, self.logprobs, self.top, self.reason = [], [], [], None
        self.id = engine.add(prompt, sampling, self, top)

    def __call__(self, output):
        assert self.reason is None, "an output after the last"
        self.tokens += output.tokens
        self.logprobs += output.logprobs
        self.top += output.top
        self.reason = output.finish_reason


def check(engine):
    """Pages of every rank are free, owned or cached, and nothing else."""
    for scheduler in engine.ranks.schedulers:
        scheduler.check()


def drain(engine, limit=2000):
    steps = 0
    while engine.step():
        check(engine)
        steps += 1
        assert steps < limit, "a request never ends"


traffic = st.lists(st.tuples(
    st.sampled_from(range(8)),  # who comes
    st.integers(0, 6),  # after so many steps
    st.one_of(st.none(), st.integers(1, 9)),  # and leaves after so many
), min_size=1, max_size=9)


def watch(engine):
    """Names of requests that were preempted, or found pages of others."""
    preempted, was_cached = set(), set()
    plan = engine.ranks.plan

    def planned(events=()):
        plans = plan(events)
        for made in plans:
            preempted.update(id for id, _ in made.preempted)
            was_cached.update(id[0] for id in made.admitted if engine.ranks.find(id).cached)
        return plans

    engine.ranks.plan = planned
    return preempted, was_cached


def step(engine, leaving):
    """One step; those whose time has come leave, and have no page after it."""
    gone = []
    for one in leaving:
        one[0] -= 1
        if one[0] == 0 and one[1].reason is None:
            engine.cancel(one[1].id)
            gone.append(one[1])
    engine.step()
    check(engine)
    for client in gone:
        assert client.reason == "cancelled"
        assert engine.ranks.find((str(client.id), 0)) is None
