"""Two halves of the rows side by side compute what the rows together do, and meet in no operation.

The second is read from the program: of an operation in a layer's body, what it depends on is one
half's rows or the other's, until the halves are joined. A barrier is none: it orders, and gives
back what it was given (tests/parallel/test_overlap.py holds the order).
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsjax.config.load import load
from dsjax.layers.backend import single
from dsjax.model import loss as losses
from dsjax.model import transformer
from dsjax.model.loss import Batch
from dsjax.model.transformer import apart, together

PLAIN = single()
HALVES = dataclasses.replace(PLAIN, parts=2)


@pytest.fixture(scope="module")
def run():
    run = load("tiny")
    moe = dataclasses.replace(run.model.moe, experts=8, expert_dim=24)
    model = dataclasses.replace(run.model, vocab=97, d_model=48, layers=3, dense_dim=40, moe=moe)
    return dataclasses.replace(run, model=model)


@pytest.fixture(scope="module")
def batch():
    keys = jax.random.split(jax.random.key(5), 2)
    tokens = jax.random.randint(keys[0], (4, 18), 0, 97)
    segments = jnp.cumsum(jax.random.bernoulli(keys[1], 0.1, (4, 18)), 1).astype(jnp.int32) + 1
    segments = segments.at[2, 11:].set(0)
    return Batch(tokens, segments, jnp.ones((4, 18)))


def differentiate(run, batch, backend, remat):
    p = transformer.init(run.model, jax.random.key(0))
    totals = losses.count(batch)

    def f(p):
        return losses.loss(p, batch, totals, 0.3, run.model, run.loss, backend, remat=remat)

    return jax.jit(jax.value_and_grad(f, has_aux=True))(p)


@pytest.mark.parametrize("remat", ["none", "v3"])
def test_halves_give_the_numbers_of_the_whole(run, batch, remat):
    """Sums over rows are added in another order: a few roundings of float32."""
    (loss, parts), grads = differentiate(run, batch, PLAIN, remat)
    (loss_2, parts_2), grads_2 = differentiate(run, batch, HALVES, remat)
    np.testing.assert_allclose(loss_2, loss, rtol=1e-6)
    np.testing.assert_array_equal(parts_2.loads, parts.loads)
    assert parts_2.mtp_targets.tolist() == parts.mtp_targets.tolist()
    for a, b in zip(jax.tree.leaves(grads_2), jax.tree.leaves(grads), strict=True):
        scale = float(jnp.abs(b).max()) or 1.0
        np.testing.assert_allclose(a / scale, b / scale, atol=2e-6)


def test_rows_come_back_in_their_order():
    x = jnp.arange(24.0).reshape(6, 2, 2)
    parts = apart(x, HALVES)
    assert [p[:, 0, 0].tolist() for p in parts] == [[0.0, 8.0, 16.0], [4.0, 12.0, 20.0]]
    np.testing.assert_array_equal(together(parts), x)
    assert apart(x, PLAIN) == [x]


def test_no_operation_of_a_layer_reads_both_halves(run, batch):
    """A change of one half's rows changes nothing that the layers make of the other's."""
    p = transformer.init(run.model, jax.random.key(0))

    def hidden(tokens):
        return transformer.hidden(p, tokens, batch.segments[:, :17], run.model, HALVES).x

    jaxpr = jax.make_jaxpr(hidden)(batch.tokens[:, :17])
    scans = [e for e in jaxpr.jaxpr.eqns if e.primitive.name == "scan"]
    assert len(scans) == 2  # dense layers, mixture layers
    for scan in scans:
        body = scan.params["jaxpr"]
        body = getattr(body, "jaxpr", body)
        halves = [v for v in body.invars if v.aval.shape == (2, 17, run.model.d_model)]
        assert len(halves) == 2
        seen = {v: {i} for i, v in enumerate(halves)}
        for eqn in body.eqns:
            each = [set() if hasattr(v, "val") else seen.get(v, set()) for v in eqn.invars]
            if eqn.primitive.name != "optimization_barrier":
                each = [set().union(*each)] * len(eqn.outvars)
            seen |= dict(zip(eqn.outvars, each, strict=True))
        assert [seen[v] for v in body.outvars[:2]] == [{0}, {1}]
