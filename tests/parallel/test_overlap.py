"""The shared experts need nothing of the exchange of tokens and it nothing of them, forth or back.

Read from the traced layer, before a compiler orders anything: what a product or an exchange needs
is all that leads to its operands; a barrier joins what goes through it.
"""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from dsjax.config.parallel import ParallelConfig
from dsjax.config.run import RunConfig
from dsjax.layers import moe as layer
from dsjax.layers.backend import rematerialize
from dsjax.model import transformer
from dsjax.train import platform, spread
from tests.train.small_run import MODEL

SHARED = 5  # so many shared experts that their products have a size of their own
MOE = dataclasses.replace(MODEL.moe, shared_experts=SHARED, expert_dim=7)
CFG = dataclasses.replace(MODEL, layers=1, dense_layers=0, mtp_depth=0, moe=MOE)
OWN = {SHARED * 7, 2 * SHARED * 7}  # sizes that only the shared experts have


def inner(eqn):
    """The jaxpr that an equation calls with its own operands, if it is such a call."""
    for value in eqn.params.values():
        body = value.jaxpr if isinstance(value, ClosedJaxpr) else value
        if isinstance(body, Jaxpr) and len(body.invars) == len(eqn.invars):
            return body
    return None


def within(jaxpr):
    """Every equation of a jaxpr and of those inside it."""
    for eqn in jaxpr.eqns:
        yield eqn
        for value in eqn.params.values():
            body = value.jaxpr if isinstance(value, ClosedJaxpr) else value
            if isinstance(body, Jaxpr):
                yield from within(body)


def needs(jaxpr, given, found):
    """What each output needs; `found` collects (what an equation is, what it needs)."""
    known = dict(zip(jaxpr.invars, given, strict=True))
    for eqn in jaxpr.eqns:
        operands = [known.get(v, frozenset()) for v in eqn.invars if not isinstance(v, Literal)]
        before = frozenset().union(*operands)
        body = None if eqn.primitive.name == "shard_map" else inner(eqn)
        if body is not None:
            each = [frozenset() if isinstance(v, Literal) else known.get(v, frozenset())
                    for v in eqn.invars]
            known |= dict(zip(eqn.outvars, needs(body, each, found), strict=True))
            continue
        is_what = kind(eqn)
        if is_what:
            found.append((is_what, before))
        known |= dict.fromkeys(eqn.outvars, before | ({is_what} if is_what else set()))
    return [frozenset() if isinstance(v, Literal) else known.get(v, frozenset())
            for v in jaxpr.outvars]


def kind(eqn):
    """`exchange`, or `shared` for a product of the shared experts, or nothing."""
    if eqn.primitive.name == "shard_map":
        names = {e.primitive.name for e in within(eqn.params["jaxpr"])}
        return "exchange" if any("all_to_all" in name for name in names) else ""
    if eqn.primitive.name == "dot_general":
        sizes = {n for v in eqn.invars for n in v.aval.shape}
        return "shared" if sizes & OWN else ""
    return ""


def traced(remat, change=lambda backend: backend):
    """What exchanges and the shared experts' products of a layer and of its gradient need."""
    run = RunConfig(name="overlap", model=CFG, parallel=ParallelConfig(expert=2))
    run = dataclasses.replace(run, train=dataclasses.replace(run.train, batch=4, length=8))
    mesh = spread.open_mesh(run)
    backend = change(spread.on_mesh(run, platform.choose_backend(run), mesh))
    p = jax.eval_shape(lambda: transformer.init(CFG, jax.random.key(0))).moe.ffn
    p = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), p)
    x = jax.ShapeDtypeStruct((4, 8, CFG.d_model), jnp.float32)

    def both(p, x, is_real, dy):
        body = rematerialize(lambda p, x: layer.moe(p, x, is_real, MOE, backend)[0], remat,
                             is_scanned=False)
        y, pull = jax.vjp(body, p, x)
        return y, pull(dy)

    closed = jax.make_jaxpr(both)(p, x, jax.ShapeDtypeStruct((4, 8), jnp.bool_), x)
    found = []
    needs(closed.jaxpr, [frozenset()] * len(closed.jaxpr.invars), found)
    return found


@pytest.mark.parametrize("remat", ["none", "full"])
def test_neither_waits_for_the_other(remat):
    found = traced(remat)
    again = remat == "full"  # the gate and up product
    assert len([what for what, _ in found if what == "shared"]) >= 6 + again
    assert len([what for what, _ in found if what == "exchange"]) >= 2
    for what, before in found:
        assert ("shared" if what == "exchange" else "exchange") not in before


def test_a_barrier_between_them_would_be_seen():
    def joined(backend):
        told = []

        def dispatch(*given):
            y, extra = backend.dispatch(*given)
            told.append(y)
            return y, extra

        def linear(x, w, **words):
            return backend.linear(jax.lax.optimization_barrier((x, told[-1]))[0], w, **words)

        return dataclasses.replace(backend, dispatch=dispatch, linear=linear)

    assert any(what == "shared" and "exchange" in before for what, before in traced("none", joined))
