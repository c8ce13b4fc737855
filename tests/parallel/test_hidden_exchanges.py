"""What may run beside an exchange of tokens needs nothing of it, and it nothing of that.

The shared experts beside their layer's exchange, and of two halves interleaved attention of one
beside the exchange of the other, forward and backward. Read from the traced layer, before a
compiler orders anything: what a product or an exchange needs is all that leads to its operands; a
barrier joins what goes through it.
"""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from dsjax.config.parallel import ParallelConfig
from dsjax.config.run import RunConfig
from dsjax.layers import moe as layer
from dsjax.layers.remat import policy
from dsjax.model import block, transformer
from dsjax.ops import rope
from dsjax.runtime import backend as backends
from dsjax.train import sharding
from tests.train.small_run import MODEL

SHARED = 5  # so many shared experts that their products have a size of their own
MOE = dataclasses.replace(MODEL.moe, shared_experts=SHARED, expert_dim=7)
CFG = dataclasses.replace(MODEL, layers=1, dense_layers=0, mtp_depth=0, moe=MOE)
OWN = {SHARED * 7, 2 * SHARED * 7}  # sizes that only the shared experts have


def inner(eqn):
    """The jaxpr that an equation calls with its own operands, if it is such a call."""
    if eqn.primitive.name in ("while", "cond"):
        return None
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


def needs(jaxpr, given, found, kind, scope=""):
    """What each output needs: numbers of entries of `found`, which are (what, what it needs).

    `kind` says what an equation is: a name, nothing, or None for a call to look into.
    """
    known = dict(zip(jaxpr.invars, given, strict=True))
    for eqn in jaxpr.eqns:
        each = [frozenset() if isinstance(v, Literal) else known.get(v, frozenset())
                for v in eqn.invars]
        before, body = frozenset().union(*each), inner(eqn)
        here = f"{scope}/{eqn.source_info.name_stack}"
        is_what = kind(eqn, here)
        if is_what is None and body is not None:
            known |= dict(zip(eqn.outvars, needs(body, each, found, kind, here), strict=True))
            continue
        if is_what:
            found.append((is_what, before))
            before |= {len(found) - 1}
        known |= dict.fromkeys(eqn.outvars, before)
    return [frozenset() if isinstance(v, Literal) else known.get(v, frozenset())
            for v in jaxpr.outvars]


def sizes_of(eqn):
    return {n for v in eqn.invars for n in v.aval.shape}


def shared_or_exchange(eqn, scope):
    """A whole exchange with its experts is one thing here."""
    if eqn.primitive.name == "shard_map":
        names = {e.primitive.name for e in within(eqn.params["jaxpr"])}
        return "exchange" if any("all_to_all" in name for name in names) else ""
    if eqn.primitive.name == "dot_general":
        return "shared" if sizes_of(eqn) & OWN else ""
    return None


def attention_or_exchange(eqn, scope):
    """Products of attention, and exchanges with the routed experts between them."""
    whole = shared_or_exchange(eqn, scope)
    if whole == "exchange":
        return whole
    if eqn.primitive.name == "while":
        names = {e.primitive.name for e in within(eqn.params["body_jaxpr"].jaxpr)}
        return "attention" if "dot_general" in names and "attention" in scope else ""
    if eqn.primitive.name == "dot_general":
        return "attention" if "attention" in scope else ""
    return None


def setting(is_interleaved=False):
    """A backend over two devices, a layer's parameters and rows."""
    layout = ParallelConfig(expert=2, interleave=is_interleaved)
    run = RunConfig(name="overlap", model=CFG, parallel=layout)
    run = dataclasses.replace(run, train=dataclasses.replace(run.train, batch_size=4, seq_len=8))
    backend = backends.for_run(run, sharding.open_mesh(run))
    p = jax.eval_shape(lambda: transformer.init(CFG, jax.random.key(0))).moe
    p = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), p)
    return backend, p, jax.ShapeDtypeStruct((4, 8, CFG.d_model), jnp.float32)


def traced(remat, change=lambda backend: backend):
    """What exchanges and the shared experts' products of a layer and of its gradient need."""
    backend, p, x = setting()
    backend, p = change(backend), p.ffn

    def both(p, x, is_real, dy):
        body = policy(remat)(lambda p, x: layer.moe(p, x, is_real, MOE, backend)[0],
                             is_scanned=False)
        y, pull = jax.vjp(body, p, x)
        return y, pull(dy)

    closed = jax.make_jaxpr(both)(p, x, jax.ShapeDtypeStruct((4, 8), jnp.bool_), x)
    found = []
    needs(closed.jaxpr, [frozenset()] * len(closed.jaxpr.invars), found, shared_or_exchange)
    return [(what, {found[n][0] for n in before}) for what, before in found]


@pytest.mark.parametrize("remat", [pytest.param("none", marks=pytest.mark.exhaustive), "full"])
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

        def gather(w):
            return jax.lax.optimization_barrier((backend.layout.gather(w), told[-1]))[0]

        layout = dataclasses.replace(backend.layout, gather=gather)
        return dataclasses.replace(backend, dispatch=dispatch, layout=layout)

    assert any(what == "shared" and "exchange" in before for what, before in traced("none", joined))


def halves(remat="none", with_gradient=True, is_interleaved=True):
    """What attention and exchanges of the two halves of a layer's rows need."""
    backend, p, x = setting(is_interleaved)
    segments = jnp.ones(x.shape[:2], jnp.int32)
    angles = rope.angles(CFG.rope, block.rope_dim(CFG), jnp.arange(x.shape[1]))

    def one(p, x, segments):
        attend = block.prefill(angles, segments, CFG, backend)
        return block.block(p, x, attend, segments != 0, CFG, backend)[0]

    one = policy(remat)(one, is_scanned=False)

    def both(p, x, dy):
        y, pull = jax.vjp(lambda p, x: backend.interleave(one, p, x, segments), p, x)
        return pull(dy) if with_gradient else y

    closed = jax.make_jaxpr(both)(p, x, x)
    found = []
    needs(closed.jaxpr, [frozenset()] * len(closed.jaxpr.invars), found, attention_or_exchange)
    return found


def numbers(found, kind, first=0):
    return [n for n, (what, _) in enumerate(found) if what == kind and n >= first]


def test_attention_of_one_half_fills_the_exchange_of_the_other():
    found = halves(with_gradient=False)
    attention, exchanges = numbers(found, "attention"), numbers(found, "exchange")
    first, second = attention[: len(attention) // 2], attention[len(attention) // 2 :]
    out, other = exchanges
    for n in second:
        assert not found[n][1] & {out, other}
        assert found[n][1] >= set(first)  # it waits until tokens of the first can set out
    assert not found[out][1] & set(second)
    assert found[other][1] >= {out, *second}  # and what follows waits for both


@pytest.mark.parametrize("remat", [pytest.param("none", marks=pytest.mark.exhaustive), "full"])
def test_so_does_its_gradient(remat):
    before = len(halves(with_gradient=False))
    found = halves(remat)
    attention = numbers(found, "attention", before)
    one, other = numbers(found, "exchange")[-2:]  # those of the gradient, a half each
    beside = [n for n in attention if one in found[n][1] and other not in found[n][1]
              and n not in found[other][1]]
    after = [n for n in attention if found[n][1] >= {one, other}]
    assert len(beside) >= 12  # of the first half, while gradients of the second travel
    assert len(after) >= 12
    if remat == "full":  # and the second's attention is made again while tokens of the first travel
        again = numbers(found, "exchange", before)[0]
        assert len([n for n in attention if again not in found[n][1]
                    and n not in found[again][1] and n not in beside]) >= 6


def test_without_an_order_no_half_waits_for_the_other():
    found = halves(is_interleaved=False, with_gradient=False)
    assert len(numbers(found, "exchange")) == 1


def test_a_model_that_is_interleaved_has_this_order():
    """Attention of one half stands beside the exchange of the other: neither needs the other."""
    exchanges = {}
    for is_interleaved in (False, True):
        backend, _, x = setting(is_interleaved)
        p = jax.eval_shape(lambda: transformer.init(CFG, jax.random.key(0)))
        ids = jax.ShapeDtypeStruct(x.shape[:2], jnp.int32)
        closed = jax.make_jaxpr(lambda p, t, s, backend=backend: transformer.hidden(
            p, t, s, CFG, backend).x)(p, ids, ids)
        found = []
        needs(closed.jaxpr, [frozenset()] * len(closed.jaxpr.invars), found, attention_or_exchange)
        out = numbers(found, "exchange")[0]
        beside = [n for n in numbers(found, "attention")
                  if out not in found[n][1] and n not in found[out][1]]
        exchanges[is_interleaved] = len(beside)
    assert exchanges[True] > exchanges[False] == 0
