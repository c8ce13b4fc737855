"""Woven computations give what they give alone, and every exchange has products beside it.

A barrier forgotten would let a compiler run one computation after the other, with every exchange
exposed; one too many, or a value taken from before a bar, would change no number, so the order is
looked at itself.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import PartitionSpec

from dsjax.parallel.overlap import overlap, phases

D = 5


def chain(exchanges, x, weights):
    """Products with an exchange between every two."""
    for i, w in enumerate(weights):
        x = jnp.sin(x) @ w
        if i < exchanges:
            x = lax.all_to_all(x, "expert", 0, 0, tiled=True)
    return x, x.sum()


def on_two_devices(f):
    mesh = jax.make_mesh((2,), ("expert",), devices=jax.devices()[:2],
                         axis_types=(jax.sharding.AxisType.Auto,))
    rows = PartitionSpec("expert")
    return jax.shard_map(f, mesh=mesh, in_specs=(rows, rows, None), out_specs=rows,
                         check_vma=True)


def given(key, count):
    keys = jax.random.split(key, 3)
    x, y = (jax.random.normal(k, (8, D)) for k in keys[:2])
    return x, y, list(jax.random.normal(keys[2], (count, D, D)))


@pytest.mark.parametrize(("first", "second"), [
    (2, 1), (0, 2), *(pytest.param(*n, marks=pytest.mark.exhaustive) for n in ((2, 2), (2, 0)))])
def test_both_give_what_they_give_alone(key, first, second):
    f, g = (functools.partial(chain, n) for n in (first, second))

    def woven(x, y, weights):
        (a, total), (b, _) = overlap(f, (x, weights), g, (y, weights))
        return a, b, total[None]

    def alone(x, y, weights):
        (a, total), (b, _) = f(x, weights), g(y, weights)
        return a, b, total[None]

    args = given(key, 3)
    for got, wanted in zip(on_two_devices(woven)(*args), on_two_devices(alone)(*args), strict=True):
        np.testing.assert_array_equal(got, wanted)


def test_every_exchange_has_products_of_the_other_beside_it(key):
    f = functools.partial(chain, 2)

    def woven(x, y, weights):
        (a, _), (b, _) = overlap(f, (x, weights), f, (y, weights))
        return a, b

    traced = jax.make_jaxpr(on_two_devices(woven))(*given(key, 3))
    names = [e.primitive.name for e in traced.jaxpr.eqns[0].params["jaxpr"].eqns]
    between = " ".join(names).split("optimization_barrier")
    told = ["x" * ("all_to_all" in part) + "p" * ("dot_general" in part) for part in between]
    assert told == ["p", "xp", "xp", "xp", "xp", "p"]


def test_phases_alternate_and_keep_the_order():
    def f(x):
        x = lax.all_to_all(x, "expert", 0, 0, tiled=True)
        x = jnp.sin(x) @ jnp.ones((D, D))
        return lax.all_to_all(x * 2, "expert", 0, 0, tiled=True) * 3

    traced = jax.make_jaxpr(f, axis_env=[("expert", 2)])(jnp.ones((8, D)))
    cut = phases(traced.jaxpr.eqns)
    assert [e for phase in cut for e in phase] == list(traced.jaxpr.eqns)
    kinds = [{e.primitive.name for e in phase} & {"all_to_all", "dot_general"} for phase in cut]
    assert kinds == [set(), {"all_to_all"}, {"dot_general"}, {"all_to_all"}]
