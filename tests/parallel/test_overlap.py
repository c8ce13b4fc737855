"""What may run beside an exchange of tokens needs nothing of it, and it nothing of that.

The shared experts beside their layer's exchange, and of two halves side by side attention of one
beside the exchange of the other, forth and back. Read from the traced layer, before a compiler
orders anything: what a product or an exchange needs is all that leads to its operands; a barrier
joins what goes through it.
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
from dsjax.model import block, transformer
from dsjax.ops import rope
from dsjax.runtime import platform
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
    """Products of attention and of the routed experts, and exchanges of whole tokens."""
    if eqn.primitive.name == "cond":  # one form of exchange for a CPU, one for others
        forms = eqn.params["branches"]
        names = {e.primitive.name for form in forms for e in within(form.jaxpr)}
        is_large = eqn.outvars[0].aval.shape[-1:] == (CFG.d_model,)
        return "exchange" if "all_to_all" in names and is_large else ""
    if eqn.primitive.name == "while":
        names = {e.primitive.name for e in within(eqn.params["body_jaxpr"].jaxpr)}
        return "attention" if "dot_general" in names and "attention" in scope else ""
    if eqn.primitive.name == "dot_general":
        if "attention" in scope:
            return "attention"
        return "experts" if sizes_of(eqn) & {MOE.expert_dim, 2 * MOE.expert_dim} else ""
    return None


def setting(is_interleaved=False):
    """A backend over two devices, a layer's parameters and rows."""
    layout = ParallelConfig(expert=2, interleave=is_interleaved)
    run = RunConfig(name="overlap", model=CFG, parallel=layout)
    run = dataclasses.replace(run, train=dataclasses.replace(run.train, batch_size=4, seq_len=8))
    backend = sharding.on_mesh(run, platform.choose_backend(run), sharding.open_mesh(run))
    p = jax.eval_shape(lambda: transformer.init(CFG, jax.random.key(0))).moe
    p = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), p)
    return backend, p, jax.ShapeDtypeStruct((4, 8, CFG.d_model), jnp.float32)


def traced(remat, change=lambda backend: backend):
    """What exchanges and the shared experts' products of a layer and of its gradient need."""
    backend, p, x = setting()
    backend, p = change(backend), p.ffn

    def both(p, x, is_real, dy):
        body = rematerialize(lambda p, x: layer.moe(p, x, is_real, MOE, backend)[0], remat,
                             is_scanned=False)
        y, pull = jax.vjp(body, p, x)
        return y, pull(dy)

    closed = jax.make_jaxpr(both)(p, x, jax.ShapeDtypeStruct((4, 8), jnp.bool_), x)
    found = []
    needs(closed.jaxpr, [frozenset()] * len(closed.jaxpr.invars), found, shared_or_exchange)
    return [(what, {found[n][0] for n in before}) for what, before in found]


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
            y, extra, beside = backend.dispatch(*given)
            told.append(y)
            return y, extra, beside

        def linear(x, w, **words):
            return backend.linear(jax.lax.optimization_barrier((x, told[-1]))[0], w, **words)

        return dataclasses.replace(backend, dispatch=dispatch, linear=linear)

    assert any(what == "shared" and "exchange" in before for what, before in traced("none", joined))


def halves(form, remat="none", with_gradient=True):
    """What attention, exchanges and experts of two halves need, and where the gradient begins."""
    backend, p, x = setting()
    segments = jnp.ones(x.shape[:2], jnp.int32)
    angles = rope.angles(CFG.rope, block.rope_dim(CFG), jnp.arange(x.shape[1]))
    mixes = [block.expanded(angles, segments, CFG, backend)] * 2

    def layer(p, xs):
        return [y for y, *_ in form(p, xs, mixes, [segments != 0] * 2, CFG, backend)]

    def both(p, xs, dys):
        ys, pull = jax.vjp(rematerialize(layer, remat, is_scanned=False), p, xs)
        return pull(dys) if with_gradient else ys

    closed = jax.make_jaxpr(both)(p, [x, x], [x, x])
    found = []
    needs(closed.jaxpr, [frozenset()] * len(closed.jaxpr.invars), found, attention_or_exchange)
    return found


def numbers(found, kind, first=0):
    return [n for n, (what, _) in enumerate(found) if what == kind and n >= first]


def one_after_the_other(p, xs, mixes, is_real, cfg, backend):
    return [block.block(p, *each, cfg, backend)
            for each in zip(xs, mixes, is_real, strict=True)]


def test_attention_of_one_half_fills_the_exchange_of_the_other():
    found = halves(block.side_by_side, with_gradient=False)
    attention, experts = numbers(found, "attention"), numbers(found, "experts")
    out, *others = numbers(found, "exchange")
    assert len(others) == 3  # back, and out and back of the other half
    first, second = attention[: len(attention) // 2], attention[len(attention) // 2 :]
    for n in second:
        assert out not in found[n][1]
        assert n not in found[out][1]
        assert found[n][1] >= set(first)  # it waits until tokens of the first can set out
    for n in experts:
        assert found[n][1] >= set(second)  # and experts wait for it
    assert found[experts[0]][1] >= {out}
    assert not found[experts[0]][1] & set(others)


@pytest.mark.parametrize("remat", ["none", "full"])
def test_so_does_its_gradient(remat):
    before = len(halves(block.side_by_side, with_gradient=False))
    found = halves(block.side_by_side, remat)
    attention = numbers(found, "attention", before)
    # in the gradient an exchange each way for the second half, then for the first
    *second, out, home = numbers(found, "exchange")[-4:]
    assert found[home][1] >= {*second, out}  # it sets out when the second half's experts are done
    beside = [n for n in attention if n not in found[home][1] and home not in found[n][1]]
    after = [n for n in attention if home in found[n][1]]
    assert len(beside) >= len(after) >= 12  # of the second half, and of the first
    waiting = [n for n in beside if found[n][1] >= set(second)]
    assert len(waiting) >= 12
    for n in waiting:  # so does the second's attention when the first's are
        assert out in found[n][1]
    for n in after:  # which waits for the second's, but for gradients of its weights
        assert len(found[n][1] & set(beside)) >= len(after) // 2


def test_without_an_order_experts_do_not_wait_for_it():
    found = halves(one_after_the_other, with_gradient=False)
    attention = numbers(found, "attention")
    experts = numbers(found, "experts")
    assert not found[experts[0]][1] >= set(attention)


def test_a_model_that_is_interleaved_has_this_order():
    """The first experts wait for attention of both halves, of which each has as many products."""
    products = {}
    for is_interleaved in (False, True):
        backend, _, x = setting(is_interleaved)
        p = jax.eval_shape(lambda: transformer.init(CFG, jax.random.key(0)))
        ids = jax.ShapeDtypeStruct(x.shape[:2], jnp.int32)
        closed = jax.make_jaxpr(lambda p, t, s, backend=backend: transformer.hidden(
            p, t, s, CFG, backend).x)(p, ids, ids)
        found = []
        needs(closed.jaxpr, [frozenset()] * len(closed.jaxpr.invars), found, attention_or_exchange)
        attention = set(numbers(found, "attention"))
        assert found[numbers(found, "experts")[0]][1] >= attention
        products[is_interleaved] = len(attention)
    assert products[True] == 2 * products[False] > 0
