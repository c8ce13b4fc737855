"""The engine's promises on a mesh: texts are one device's, and company changes no bit."""

import dataclasses
import functools

import jax
import pytest
from hypothesis import HealthCheck, given, settings

from dsjax import weights
from dsjax.config.parallel import ParallelConfig
from dsjax.config.run import PrecisionConfig
from dsjax.errors import UserError
from dsjax.infer import Model
from dsjax.infer.engine.device import Device
from dsjax.infer.engine.engine import Engine
from dsjax.model import transformer
from dsjax.numerics.scaled import Scaled
from dsjax.parallel import mesh as meshes
from dsjax.parallel import rules
from dsjax.released import hf
from dsjax.runtime.backend import for_decoding
from tests import agreement
from tests.infer.engine.clients import REQUESTS, SETTING, Client, check, drain, step, traffic, watch

# of two experts a sum is the same in either order, of three it is not
MOE = dataclasses.replace(agreement.V3_MOE, experts=8, groups=4, experts_per_token=3)
CFG = dataclasses.replace(agreement.TINY, vocab=7, layers=2, moe=MOE, mtp_depth=1)
ROOM = dataclasses.replace(SETTING, slots=2, budget=None)
LAYOUTS = {
    "data 2 x fsdp 2 x expert 2": ParallelConfig(data=2, fsdp=2, expert=2),
    "expert 8 over 2 nodes": ParallelConfig(expert=8, expert_nodes=2),
    "data 4": ParallelConfig(data=4),
}
MIXED = "data 2 x fsdp 2 x expert 2"
more = functools.partial(pytest.param, marks=pytest.mark.exhaustive)


def model_on(layout, precision="fp32"):
    """The model on one device, or on a mesh as its parameters lie there."""
    p, specs = agreement.draw(transformer.specs(CFG), 2), transformer.specs(CFG)
    numerics = PrecisionConfig(precision)
    if layout is None:
        return Model(CFG, p, None, 40, for_decoding(CFG, numerics), None)
    mesh = meshes.make_mesh(layout)
    placed = jax.device_put(p, rules.used_shardings(specs, mesh))
    return Model(CFG, placed, None, 40, for_decoding(CFG, numerics, layout, mesh), mesh, layout)


@functools.cache
def device(name, way, precision="fp32"):
    """An engine's device, compiled once; no name is one device."""
    jax.config.update("jax_disable_most_optimizations", True)
    model = model_on(LAYOUTS.get(name), precision)
    return Device(model, dataclasses.replace(ROOM, draft=way == "drafted"))


def served(device, who=range(8)):
    """What requests got that came at once."""
    engine = Engine(device)
    clients = [Client(engine, *REQUESTS[i]) for i in who]
    drain(engine)
    return clients, engine.stats()


@functools.cache
def alone(device, i):
    return served(device, [i])[0][0]


@pytest.mark.exhaustive  # tests/infer/test_layouts.py does so without an engine
@pytest.mark.parametrize("way", ["plain", "drafted"])
@pytest.mark.parametrize("name", [MIXED, more("expert 8 over 2 nodes"), more("data 4")])
def test_texts_are_those_of_one_device_greedy_and_sampled(name, way):
    """And many at once take fewer steps: rows lie on every device."""
    wanted, one = served(device(None, way))
    found, many = served(device(name, way))
    assert [(c.tokens, c.reason) for c in found] == [(c.tokens, c.reason) for c in wanted]
    assert many.generated_tokens == one.generated_tokens
    assert many.steps < one.steps / 2


@pytest.mark.exhaustive
@pytest.mark.parametrize("precision", ["bf16", "fp8"])
def test_other_precisions_say_what_they_say_on_one_device(precision):
    """Requests without ties: operands are quantized a row at a time, so that only sums differ."""
    wanted, _ = served(device(None, "drafted", precision))
    found, _ = served(device(MIXED, "drafted", precision))
    assert [c.tokens for c in found] == [c.tokens for c in wanted]


@pytest.mark.exhaustive
def test_weights_that_rest_in_8_bits_say_what_they_say_on_one_device(tmp_path):
    """Matrices of several tiles, so that codes are cut and scales too, or not."""
    jax.config.update("jax_disable_most_optimizations", True)
    cfg = dataclasses.replace(
        CFG, d_model=256, dense_dim=130, moe=dataclasses.replace(MOE, expert_dim=130),
        attention=dataclasses.replace(agreement.MLA, latent_norm_eps=1e-6))
    hf.save(tmp_path, cfg, agreement.draw(transformer.specs(cfg), 2), fp8=True)
    texts = []
    for layout in (None, LAYOUTS[MIXED]):
        mesh = layout and meshes.make_mesh(layout)
        where = layout and rules.used_shardings(transformer.specs(cfg), mesh)
        p = weights.load(tmp_path, "stored", where, choice=weights.Choice(model=cfg))
        assert isinstance(p.stacks["moe"].ffn.experts.w_gate_up, Scaled)
        backend = for_decoding(cfg, PrecisionConfig("fp8"), layout, mesh)
        model = Model(cfg, p, None, 40, backend, mesh, layout or ParallelConfig())
        found, _ = served(Device(model, dataclasses.replace(ROOM, page_dtype="fp8")))
        texts.append([c.tokens for c in found])
    assert texts[0] == texts[1]


@settings(max_examples=25, deadline=None, derandomize=True,
          suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(plan=traffic)
def test_company_changes_no_bit_on_a_layout_and_loses_no_page(plan):
    on = device(MIXED, "drafted")
    engine = Engine(on)
    preempted, was_cached = watch(engine)
    clients, leaving = [], []
    for who, wait, leave in plan:
        for _ in range(wait):
            step(engine, leaving)
        client = Client(engine, *REQUESTS[who])
        clients.append((who, client))
        if leave is not None:
            leaving.append([leave, client])
    for _ in range(10):
        step(engine, leaving)
        stats = engine.stats()
        assert (stats.pages_free + stats.pages_owned + stats.pages_cached == on.ranks * on.pages)
    drain(engine)
    assert engine.stats().pages_owned == 0
    for who, client in clients:
        wanted, count = alone(on, who), len(client.tokens)
        if client.reason != "cancelled":
            assert (client.reason, count) == (wanted.reason, len(wanted.tokens))
        assert client.tokens == wanted.tokens[:count]
        if str(client.id) not in preempted | was_cached:
            assert client.logprobs == wanted.logprobs[:count]


def test_a_prompt_again_is_found_in_the_pages_of_its_rank():
    engine = Engine(device(MIXED, "drafted"))
    first = Client(engine, *REQUESTS[7])
    drain(engine)
    again = Client(engine, *REQUESTS[7])
    drain(engine)
    assert engine.stats().cached_tokens == 16
    assert again.tokens == first.tokens


def test_nothing_is_compiled_after_the_start(compiles):
    on = device(MIXED, "drafted")
    compiles.clear()
    served(on)
    assert not compiles


def test_cancelling_frees_the_pages_of_every_rank():
    engine = Engine(device(MIXED, "drafted"))
    clients = [Client(engine, *REQUESTS[i]) for i in range(8)]
    for _ in range(3):
        engine.step()
    assert engine.stats().pages_owned > 0
    for client in clients:
        engine.cancel(client.id)
    engine.step()
    check(engine)
    assert (engine.stats().pages_owned, engine.stats().running) == (0, 0)


def test_a_device_holds_its_own_part_of_a_matrix_alone():
    """Experts by their axis, and the dim that fsdp cuts."""
    p = device(MIXED, "drafted").params
    w = p.stacks["moe.0"].ffn.experts.w_gate_up
    assert w.shape == (1, 8, 10, 2, 5)
    assert {shard.data.shape for shard in w.addressable_shards} == {(1, 4, 5, 2, 5)}
    w = p.stacks["moe.0"].attn.w_dkv
    assert {shard.data.shape[1] for shard in w.addressable_shards} == {5}


def test_several_processes_are_refused(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(UserError, match="one process"):
        Device(model_on(None), ROOM)
