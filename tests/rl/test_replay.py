"""Training takes the experts that the engine took: of every token, whichever way it was read, with
the gradient through the router's scores; and it is seen how many its own router would take.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsjax.errors import UserError
from dsjax.infer.engine.device import Device, Setting
from dsjax.infer.engine.engine import Engine
from dsjax.infer.engine.request import ending
from dsjax.infer.model import Model
from dsjax.infer.sample import Sampling
from dsjax.layers.backend import single
from dsjax.model import transformer
from dsjax.rl import rollout, update, weights
from dsjax.rl.rollout import Asked
from dsjax.runtime import backend as backends
from tests.rl import small

ASKED = Asked(4, 24, 7, {"colon": 1.0})
SCORE = update.compile_score(small.RUN, single(), None)


def rolled(engine, seed=(0, 0)):
    return rollout.roll_out(engine, small.words(), small.asked(), ASKED, seed)


def known(made, params=None):
    return update.known(SCORE, params or small.params(), None, made, None)


@pytest.fixture(scope="module")
def made():
    engine = small.engine()
    weights.exchange(engine, small.params(), small.RUN, None)
    return rolled(engine)


def test_routes_of_the_engine_are_those_of_the_trainer(made):
    assert made.routes.shape == (12, 2, 31, 2)
    assert known(made).equal_routes == 1.0


def test_pages_that_were_found_bring_their_routes(made):
    engine = small.engine()
    before = engine.stats().cached_tokens
    again = rolled(engine)
    assert engine.stats().cached_tokens > before
    np.testing.assert_array_equal(again.routes, made.routes)


@pytest.mark.parametrize("is_deterministic", [
    False, pytest.param(True, marks=pytest.mark.exhaustive)])
def test_rows_that_gave_up_their_pages_have_routes(made, is_deterministic):
    """With pages for few rows of twelve; what is read again is written again."""
    model = Model(small.MODEL, small.params(), small.words(), 31, backends.default_backend(), None)
    engine = Engine(Device(model, Setting(
        slots=12, max_len=31, pages=20, page_size=4, chunk=8, top_logprobs=1, keep_routes=True,
        is_deterministic=is_deterministic)))
    given_up, plan = [], engine.ranks.plan

    def watched(events):
        plans = plan(events)
        given_up.extend(id for one in plans for id in one.preempted)
        return plans

    engine.ranks.plan = watched
    found = rolled(engine)
    assert len(given_up) > 3
    np.testing.assert_array_equal(found.tokens, made.tokens)
    np.testing.assert_array_equal(found.routes, made.routes)


def test_a_row_whose_last_token_is_on_its_way_when_its_pages_go_has_routes():
    """They are read before the step that gives its pages to another."""
    model = Model(small.MODEL, small.params(), small.words(), 31, backends.default_backend(), None)
    engine = Engine(Device(model, Setting(
        slots=12, max_len=31, pages=9, page_size=4, chunk=8, keep_routes=True)))
    rng, take, late = np.random.default_rng(18), engine._take, []
    asked = [(rng.integers(0, 260, rng.integers(3, 12)).tolist(),
              Sampling(max_new_tokens=int(rng.integers(2, 16)), seed=n)) for n in range(12)]

    def taken(rows, given, routes):
        ended = [engine.ranks.find(id) for id in ending(map(engine.ranks.find, rows), given)]
        late.extend(row.id for row in ended if row.slot is None)
        take(rows, given, routes)

    def served(some):
        made = [[] for _ in some]
        for one, got in zip(some, made, strict=True):
            engine.add(*one, got.append)
        while engine.step():
            pass
        return [outputs[-1].routes[: len(ids) + sum(len(one.tokens) for one in outputs) - 1]
                for (ids, _), outputs in zip(some, made, strict=True)]

    engine._take = taken
    together = served(asked)
    assert late
    engine.exchange(small.params())
    for one, found in zip(asked, together, strict=True):
        np.testing.assert_array_equal(found, *served([one]))


def test_routes_of_another_router_are_taken_and_seen_to_differ(made):
    """A bias moves the choice; told the routes of the rollout, log-probabilities are as they were.
    """
    moe = small.params().stacks["moe"]
    bias = moe.ffn.router.bias + jnp.linspace(0, 0.5, 6)[None]
    ffn = moe.ffn.replace(router=moe.ffn.router.replace(bias=bias))
    other = small.params().replace(stacks={**small.params().stacks, "moe": moe.replace(ffn=ffn)})
    followed = known(made, other)
    assert 0.05 < followed.equal_routes < 0.95
    np.testing.assert_allclose(followed.old, known(made).old, rtol=0, atol=1e-6)
    alone = known(dataclasses.replace(made, routes=None), other)
    assert np.isnan(alone.equal_routes)
    assert np.abs((alone.old - made.engine) * made.mask).max() > 1e-2
    assert alone.mismatch.outside > 10 * followed.mismatch.outside


def test_the_gradient_of_a_replayed_router_reaches_the_experts_that_were_taken(made):
    """Through their scores, which a router gathers before any choice; of a sigmoid no others."""
    batch = jnp.asarray(made.tokens), jnp.asarray(made.real, jnp.int32), jnp.asarray(made.routes)

    def total(p):
        return jnp.where(made.mask, SCORE(p, *batch)[0], 0.0).sum()

    grads = jax.grad(total, allow_int=True)(small.params())
    moved = np.abs(grads.stacks["moe"].ffn.router.centroids).sum(axis=1)  # [L, E]
    taken = [np.unique(made.routes[:, layer][made.real]) for layer in range(2)]
    for layer in range(2):
        assert (np.flatnonzero(moved[layer]) == taken[layer]).all()


def test_rows_of_an_update_carry_the_routes_only_where_they_are_replayed(made):
    found = dataclasses.replace(known(made), reference=made.engine)
    rows = update.rows_of(made, found, found.old, small.RL)
    np.testing.assert_array_equal(rows["routes"], made.routes)
    rows = update.rows_of(made, found, found.old,
                          dataclasses.replace(small.RL, replay_routes=False))
    assert "routes" not in rows


@pytest.mark.exhaustive
def test_tokens_that_were_drafted_have_the_routes_of_the_main_model():
    cfg = dataclasses.replace(small.MODEL, mtp_depth=1)
    model = Model(cfg, transformer.init(cfg, jax.random.key(0)), small.words(), 31,
                  backends.default_backend(), None)
    engine = Engine(Device(model, Setting(
        slots=12, max_len=31, page_size=4, chunk=8, top_logprobs=1, keep_routes=True, draft=True)))
    found = rolled(engine)
    assert engine.stats().drafted > 12
    score = update.compile_score(dataclasses.replace(small.RUN, model=cfg), single(), None)
    assert update.known(score, model.params, None, found, None).equal_routes == 1.0


def test_a_dense_model_has_no_routes_to_keep():
    dense = dataclasses.replace(small.MODEL, moe=None, dense_layers=3)
    model = Model(dense, None, small.words(), 31, backends.default_backend(), None)
    with pytest.raises(UserError, match=r"routes are kept of a mixture.*leave"):
        Device(model, Setting(keep_routes=True))
