"""A deterministic engine: every bit is the same with a prefix hit, in other pieces, preempted.

The other engines promise bits beside others; here they are promised against the request's own
history too.
"""

import dataclasses
import functools

import jax
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dsjax.config.parallel import ParallelConfig
from dsjax.errors import UserError
from dsjax.infer import Model, Sampling, default_backend
from dsjax.infer.engine import trial
from dsjax.infer.engine.device import Device
from dsjax.infer.engine.engine import Engine
from dsjax.model import transformer
from tests import agreement
from tests.infer.engine.clients import (
    EXPERTS,
    REQUESTS,
    SETTING,
    Client,
    drain,
    step,
    traffic,
    watch,
)

ONE = dataclasses.replace(SETTING, is_deterministic=True, budget=None)


@functools.cache
def model(depth=1):
    cfg = dataclasses.replace(EXPERTS, mtp_depth=depth)
    return Model(cfg, agreement.draw(transformer.specs(cfg), 3), None, 40, default_backend(), None)


@functools.cache
def device(depth):
    """An engine's device whose modules draft `depth` tokens."""
    jax.config.update("jax_disable_most_optimizations", True)
    return Device(model(depth or 1), dataclasses.replace(ONE, draft=depth > 0))


def in_pieces(on, chunk):
    """The same device, reading prompts in pieces of another size: no program has that size."""
    other = object.__new__(Device)
    other.__dict__ |= on.__dict__
    other.setting = dataclasses.replace(on.setting, chunk=chunk)
    other.budget = on.setting.slots * (on.depth + 1) + chunk
    other.reset()
    return other


@functools.cache
def alone(depth, i):
    """What a request gets alone, its prompt read a token at a time."""
    engine = Engine(in_pieces(device(depth), 1))
    client = Client(engine, *REQUESTS[i], top=2)
    drain(engine)
    return client


@pytest.mark.parametrize("depth", [
    1, *(pytest.param(n, marks=pytest.mark.exhaustive) for n in (0, 2))])
@settings(max_examples=60, deadline=None, derandomize=True,
          suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(plan=traffic, chunk=st.sampled_from([1, 3, 8, 20]))
def test_nothing_changes_a_bit(depth, plan, chunk):
    """Company, prefix hits, preemption (pages are too few) and the size of pieces."""
    engine = Engine(in_pieces(device(depth), chunk))
    clients, leaving = [], []
    for who, wait, leave in plan:
        for _ in range(wait):
            step(engine, leaving)
        client = Client(engine, *REQUESTS[who], top=2)
        clients.append((who, client))
        if leave is not None:
            leaving.append([leave, client])
    for _ in range(10):
        step(engine, leaving)
    drain(engine)
    for who, client in clients:
        wanted, count = alone(depth, who), len(client.tokens)
        if client.reason != "cancelled":
            assert (client.reason, count) == (wanted.reason, len(wanted.tokens))
        assert client.tokens == wanted.tokens[:count]
        assert client.logprobs == wanted.logprobs[:count]
        assert client.top == wanted.top[:count]


def test_the_traffic_has_hits_and_preemptions():
    """What the property above is about happens."""
    engine = Engine(device(1))
    preempted, was_cached = watch(engine)
    for _ in range(2):
        for i in (6, 7, 2, 7):
            Client(engine, *REQUESTS[i])
        drain(engine)
    assert preempted
    assert was_cached


def test_texts_are_those_of_an_engine_that_reads_at_once():
    jax.config.update("jax_disable_most_optimizations", True)
    texts = []
    for on in (device(1), Device(model(1), dataclasses.replace(SETTING, draft=True))):
        engine = Engine(on)
        clients = [Client(engine, *request) for request in REQUESTS]
        drain(engine)
        texts.append([client.tokens for client in clients])
    assert texts[0] == texts[1]


def test_a_decoded_token_has_the_bits_of_one_that_is_read():
    """A text's continuation, and the same text as a prompt: what comes next has the same bits."""
    whole = Sampling(0.0, max_new_tokens=9)
    for depth in (0, 1):
        engine = Engine(device(depth))
        first = Client(engine, REQUESTS[5][0], whole)
        drain(engine)
        device(depth).reset()
        for cut in (1, 4, 6):
            engine = Engine(device(depth))  # with pages that hold nothing yet
            prompt = REQUESTS[5][0] + first.tokens[:cut]
            again = Client(engine, prompt, dataclasses.replace(whole, max_new_tokens=9 - cut))
            drain(engine)
            assert again.tokens == first.tokens[cut:]
            assert again.logprobs == first.logprobs[cut:]


def test_a_machine_on_which_a_place_changes_bits_is_refused(monkeypatch):
    monkeypatch.setattr(trial, "_same", lambda a, b: False)
    with pytest.raises(UserError, match="deterministic"):
        Device(model(1), ONE)


@pytest.mark.exhaustive
def test_on_a_layout_too():
    from tests.infer.engine import test_layouts as on_mesh

    jax.config.update("jax_disable_most_optimizations", True)
    layout = ParallelConfig(data=2, fsdp=2, expert=2)
    on = Device(on_mesh.model_on(layout),
                dataclasses.replace(on_mesh.ROOM, draft=True, is_deterministic=True))
    found = []
    for chunk, times in ((8, 1), (3, 2), (20, 1)):
        engine = Engine(in_pieces(on, chunk))
        for _ in range(times):
            clients = [Client(engine, *request) for request in REQUESTS]
            drain(engine)
        found.append([(client.tokens, client.logprobs) for client in clients])
        assert (engine.stats().cached_tokens > 0) == (times > 1)
    assert found[0] == found[1] == found[2]
