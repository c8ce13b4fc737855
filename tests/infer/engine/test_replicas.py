"""Copies of busy experts: the same tokens, and ranks of experts that are more evenly busy."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsjax.config.parallel import ParallelConfig
from dsjax.config.run import PrecisionConfig
from dsjax.errors import UserError
from dsjax.infer import Model
from dsjax.infer.engine import experts
from dsjax.infer.engine.device import Device
from dsjax.infer.engine.engine import Engine
from dsjax.layers.replicas import Replicas
from dsjax.model import transformer
from dsjax.parallel import mesh as meshes
from dsjax.parallel import rules
from dsjax.runtime.backend import for_decoding
from tests import agreement
from tests.infer.engine.clients import REQUESTS, Client, drain
from tests.infer.engine.test_layouts import CFG, ROOM

LAYOUT = ParallelConfig(data=2, expert=4)


@functools.cache
def model():
    """A model whose router prefers some experts, all of one device."""
    mesh, specs = meshes.make_mesh(LAYOUT), transformer.specs(CFG)
    p = agreement.draw(specs, 2)
    moe = p.stacks["moe"]
    bias = moe.ffn.router.bias.at[:, :2].add(0.15)
    router = dataclasses.replace(moe.ffn.router, bias=bias)
    moe = dataclasses.replace(moe, ffn=dataclasses.replace(moe.ffn, router=router))
    p = p.replace(stacks={**p.stacks, "moe": moe})
    backend = for_decoding(CFG, PrecisionConfig("fp32"), LAYOUT, mesh)
    placed = jax.device_put(p, rules.used_shardings(specs, mesh))
    return Model(CFG, placed, None, 40, backend, mesh, LAYOUT)


def served(device):
    engine = Engine(device)
    clients = [Client(engine, *request) for request in REQUESTS]
    drain(engine)
    return clients, engine


@functools.cache
def plain():
    jax.config.update("jax_disable_most_optimizations", True)
    return served(Device(model(), ROOM))


def test_loads_are_those_of_the_tokens_that_passed():
    """Every token of every prompt and continuation but the last, once, K experts each."""
    clients, engine = plain()
    passed = sum(len(prompt) + len(client.tokens) - 1
                 for (prompt, _), client in zip(REQUESTS, clients))
    loads = np.asarray(engine.expert_loads())
    assert loads.shape == (1, 8)
    # passes that were prepared before a row's end was known were run too
    late = loads.sum() / CFG.moe.experts_per_token - passed
    assert 0 <= late <= len(REQUESTS)
    assert engine.stats().experts_busiest == engine.stats().experts_busiest_in_order > 1.2


def test_copies_change_no_token_and_even_the_load_out():
    clients, engine = plain()
    loads = np.asarray(engine.expert_loads())
    device = Device(model(), dataclasses.replace(ROOM, redundant_experts=8), loads)
    held = device.placement
    assert held.of.shape == (1, 16)
    assert held.counts.max() > 1
    w = device.params.stacks["moe.0"].ffn.experts.w_down
    assert {shard.data.shape[1] for shard in w.addressable_shards} == {4}
    before = model().params.stacks["moe"].ffn.experts.w_down
    np.testing.assert_array_equal(w, np.asarray(before)[:, held.of[0]])
    found, again = served(device)
    assert [c.tokens for c in found] == [c.tokens for c in clients]
    np.testing.assert_array_equal(again.expert_loads(), loads)
    stats = again.stats()
    assert stats.experts_busiest_in_order == engine.stats().experts_busiest
    assert stats.experts_busiest < 1 + (stats.experts_busiest_in_order - 1) / 2
    alone = Engine(device)
    client = Client(alone, *REQUESTS[7])
    drain(alone)
    assert client.logprobs == found[7].logprobs  # company changes no bit


@pytest.mark.parametrize("per_token", [2, 6])
def test_a_tokens_copies_are_its_own_affair_and_all_are_taken_alike(per_token):
    """Weights add up to one number, as a router's do: of two, the second says nothing new."""
    loads = np.random.default_rng(0).zipf(1.5, (1, 64)).astype(float)
    cfg = dataclasses.replace(CFG, moe=dataclasses.replace(CFG.moe, experts=64))
    placed = experts.planned(loads, 16, cfg, ParallelConfig(expert=8))
    slots, counts, of = (jnp.asarray(a[0], jnp.int32)
                         for a in (placed.slots, placed.counts, placed.of))
    rng = np.random.default_rng(1)
    share = loads[0] / loads.sum()
    chosen = np.array([rng.choice(64, per_token, replace=False, p=share) for _ in range(4000)],
                      np.int32)
    replicas = Replicas(slots, counts, of)
    affinity = rng.uniform(0.1, 1, chosen.shape)
    weights = jnp.asarray(2.5 * affinity / affinity.sum(1, keepdims=True), jnp.float32)
    taken = np.asarray(replicas.chosen(jnp.asarray(chosen), weights))
    np.testing.assert_array_equal(np.asarray(of)[taken], chosen)
    again = replicas.chosen(jnp.asarray(chosen[7:9]), weights[7:9])
    np.testing.assert_array_equal(again, taken[7:9])
    tokens = np.bincount(taken.ravel(), minlength=80)
    for e in range(64):
        copies = np.asarray(slots)[e, : int(counts[e])]
        mean = tokens[copies].mean()
        # binomial: five standard deviations
        assert (np.abs(tokens[copies] - mean) <= 5 * np.sqrt(mean) + 1).all()


def test_what_cannot_be_placed_is_refused():
    loads = np.ones((1, 8))
    for setting, given, word in [
            ({"redundant_experts": 4}, None, "expert-loads"),
            ({"redundant_experts": 3}, loads, "divide"),
            ({}, np.ones((1, 7)), "not of this model")]:
        with pytest.raises(UserError, match=word):
            Device(model(), dataclasses.replace(ROOM, **setting), given)
    one = Model(CFG, agreement.draw(transformer.specs(CFG), 2), None, 40,
                for_decoding(CFG, PrecisionConfig("fp32")), None)
    with pytest.raises(UserError, match="there is one"):
        Device(one, ROOM, loads)
