"""Two halves of the rows side by side compute what the rows together do, and meet in no operation.

The second is read from the program: of an operation in a layer's body, what it depends on is one
half's rows or the other's, until the halves are joined. A barrier is none: it orders, and gives
back what it was given (tests/parallel/test_overlap.py holds the order).
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsjax.config.load import load
from dsjax.layers.backend import ONE_DEVICE, single
from dsjax.layers.remat import policy
from dsjax.model import loss as losses
from dsjax.model import transformer
from dsjax.model.loss import Batch
from dsjax.parallel.jaxprs import inlined
from dsjax.parallel.overlap import _halves, interleave

PLAIN = single()
SPLIT = functools.partial(interleave, constrain=ONE_DEVICE.constrain)
HALVES = dataclasses.replace(PLAIN, interleave=SPLIT)


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
    objective = losses.Objective(losses.count(batch), 0.3, run.loss)

    backend = dataclasses.replace(backend, remat=policy(remat))

    def f(p):
        return losses.loss(p, batch, objective, run.model, backend)

    return jax.jit(jax.value_and_grad(f, has_aux=True))(p)


@pytest.mark.exhaustive  # two whole gradients; tests below hold rows and order
@pytest.mark.parametrize("remat", ["none", "v3"])
def test_halves_give_the_numbers_of_the_whole(run, batch, remat):
    """Sums over rows are added in another order: a few roundings of float32."""
    run = dataclasses.replace(run, model=dataclasses.replace(run.model, mtp_depth=0))
    (loss, parts), grads = differentiate(run, batch, PLAIN, remat)
    (loss_2, parts_2), grads_2 = differentiate(run, batch, HALVES, remat)
    np.testing.assert_allclose(loss_2, loss, rtol=1e-6)
    np.testing.assert_array_equal(parts_2.loads, parts.loads)
    assert parts_2.targets.tolist() == parts.targets.tolist()
    for a, b in zip(jax.tree.leaves(grads_2), jax.tree.leaves(grads), strict=True):
        scale = float(jnp.abs(b).max()) or 1.0
        np.testing.assert_allclose(a / scale, b / scale, atol=2e-6)


def test_each_half_has_every_other_row_and_rows_come_back_in_their_order():
    x, seen = jnp.arange(24.0).reshape(6, 2, 2), []

    def f(scale, x):
        seen.append(x.shape)
        return scale * x, x.sum(axis=(1, 2)), x.sum()

    scaled, sums, total = HALVES.interleave(f, 3.0, x)
    np.testing.assert_array_equal(scaled, 3 * x)
    np.testing.assert_array_equal(sums, x.sum(axis=(1, 2)))
    assert total == x.sum()
    assert set(seen) == {(3, 2, 2)}
    first, second = _halves(x, ONE_DEVICE.constrain)
    assert [first[:, 0, 0].tolist(), second[:, 0, 0].tolist()] == [[0, 8, 16], [4, 12, 20]]


def test_no_operation_of_a_layer_reads_both_halves(run, batch):
    """A change of one half's rows changes nothing that the layers make of the other's."""
    p = transformer.init(run.model, jax.random.key(0))

    def hidden(tokens):
        return transformer.hidden(p, tokens, batch.segments[:, :17], run.model, HALVES).x

    jaxpr = jax.make_jaxpr(hidden)(batch.tokens[:, :17])
    scans = [e for e in jaxpr.jaxpr.eqns if e.primitive.name == "scan"]
    assert len(scans) == 2  # dense layers, mixture layers
    whole = (4, 17, run.model.d_model)
    for scan in scans:
        body = jax.make_jaxpr(inlined(scan.params["jaxpr"]))(
            *(v.aval for v in scan.params["jaxpr"].jaxpr.invars)).jaxpr
        [x] = [v for v in body.invars if v.aval.shape == whole]
        halves = [e.outvars[0] for e in body.eqns
                  if e.primitive.name == "slice" and e.outvars[0].aval.size * 2 == x.aval.size]
        assert len(halves) == 2
        seen = {v: {i} for i, v in enumerate(halves)}
        for eqn in body.eqns:
            if eqn.primitive.name == "stack" and eqn.outvars[0].aval.size == x.aval.size:
                joined = eqn
                break
            if eqn.outvars[0] in halves:
                continue
            each = [set() if hasattr(v, "val") else seen.get(v, set()) for v in eqn.invars]
            if eqn.primitive.name != "optimization_barrier":
                each = [set().union(*each)] * len(eqn.outvars)
            seen |= dict(zip(eqn.outvars, each, strict=True))
        assert [seen[v] for v in joined.invars] == [{0}, {1}]
