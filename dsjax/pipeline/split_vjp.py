"""A function's gradient in three parts that may run at different times: F, B and W.

Zero-bubble schedules (Qi et al., arXiv 2401.10241; V3 report sec. 3.2.1) run the gradient of a
stage's input (B) when the stage before waits for it, and that of its weights (W) later. Neither may
run the forward (F) again. Here the three are cut out of one trace of `jax.vjp`: every equation of
the trace belongs to the first part that needs it.

    F   what the output and the residuals of `jax.vjp` need
    B   what the input's gradient needs; gains and biases, whose gradients need no product
    W   the rest: the products that make gradients of matrices

Between them travel residuals: `for_b`, what F made of the input and B or W reads, and `for_w`, what
B made and W reads. What depends on weights alone (another shape, another dtype) is made again where
it is read, so that no weight is kept with an activation. What `jax.checkpoint` recomputes is traced
within the gradient, so it belongs to B.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
from jax import Array
from jax.extend.core import ClosedJaxpr, JaxprEqn, Var, jaxpr_as_fun

from dsjax.parallel.jaxprs import PRODUCTS, inlined, read, variables
from dsjax.params import Tree

VIEWS = {"reshape", "squeeze", "expand_dims", "broadcast_in_dim", "name"}
"""Equations whose result is their operand in another shape: made again, never carried."""


@dataclasses.dataclass(frozen=True)
class Split:
    """The three parts of f(w, x, side) -> (y, aux), where only w and x have gradients."""

    forward: Callable[[Tree, Tree, Tree], tuple[Tree, Tree, list[Array]]]
    """w, x, side -> y, aux, for_b."""
    input_gradient: Callable[[Tree, Tree, list[Array], Tree], tuple[Tree, list[Array]]]
    """w, side, for_b, dy -> dx, for_w."""
    weight_gradient: Callable[[Tree, Tree, list[Array], list[Array]], Tree]
    """w, side, for_b, for_w -> dw."""


def split(f: Callable[[Tree, Tree, Tree], tuple[Tree, Tree]], w: Tree, x: Tree, side: Tree,
          dy: Tree) -> Split:
    """Cut the gradient of f(w, x, side) -> (y, aux); the arguments give shapes and dtypes."""

    def joint(w: Tree, x: Tree, side: Tree, dy: Tree) -> tuple:
        y, pull, aux = jax.vjp(lambda w, x: f(w, x, side), w, x, has_aux=True)
        return y, aux, jax.tree.leaves(pull), *pull(dy)

    closed, shapes = jax.make_jaxpr(joint, return_shape=True)(w, x, side, dy)
    closed = jax.make_jaxpr(inlined(closed))(*jax.tree.leaves((w, x, side, dy)))
    ins = _cut(closed.jaxpr.invars, [len(jax.tree.leaves(t)) for t in (w, x, side, dy)])
    outs = _cut(closed.jaxpr.outvars, [len(jax.tree.leaves(s)) for s in shapes])
    y_tree, aux_tree, _, dw_tree, dx_tree = map(jax.tree.structure, shapes)
    shares = _share(closed.jaxpr.eqns, ins, outs)
    (w_in, x_in, side_in, dy_in), (y_out, aux_out, _, dw, dx) = ins, outs

    def part(own: list[JaxprEqn], given: Sequence[Var], wanted: Sequence[Any]) -> Callable:
        jaxpr = closed.jaxpr.replace(invars=list(given), outvars=list(wanted), eqns=own)
        return jaxpr_as_fun(ClosedJaxpr(jaxpr, closed.consts))

    for_b, for_w = shares.for_b, shares.for_w
    ahead = part(shares.forward, [*w_in, *x_in, *side_in], [*y_out, *aux_out, *for_b])
    back = part(shares.input, [*w_in, *side_in, *for_b, *dy_in], [*dx, *for_w])
    late = part(shares.weight, [*w_in, *side_in, *for_b, *for_w], dw)

    def forward(w: Tree, x: Tree, side: Tree) -> tuple[Tree, Tree, list[Array]]:
        found = ahead(*jax.tree.leaves((w, x, side)))
        y, aux, kept = _cut(found, (len(y_out), len(aux_out), len(for_b)))
        return jax.tree.unflatten(y_tree, y), jax.tree.unflatten(aux_tree, aux), kept

    def input_gradient(w: Tree, side: Tree, for_b: list[Array],
                       dy: Tree) -> tuple[Tree, list[Array]]:
        dx, late = _cut(back(*jax.tree.leaves((w, side, for_b, dy))), (len(x_in), len(for_w)))
        return jax.tree.unflatten(dx_tree, dx), late

    def weight_gradient(w: Tree, side: Tree, for_b: list[Array], for_w: list[Array]) -> Tree:
        return jax.tree.unflatten(dw_tree, late(*jax.tree.leaves((w, side, for_b, for_w))))

    return Split(forward, input_gradient, weight_gradient)


@dataclasses.dataclass(frozen=True)
class _Shares:
    """The equations of each part, with those made again in it, and what travels between them."""

    forward: list[JaxprEqn]
    input: list[JaxprEqn]
    weight: list[JaxprEqn]
    for_b: list[Var]
    for_w: list[Var]


def _share(eqns: list[JaxprEqn], ins: list[list[Var]], outs: list[list[Any]]) -> _Shares:
    """Give every equation to the first part that needs it."""
    (_, x_in, _, dy_in), (y_out, aux_out, kept, dw, dx) = ins, outs
    first = needed(eqns, [*y_out, *aux_out, *kept])
    made_first = _defined(first)
    seen = made_first | _defined(needed(eqns, dx, made_first))
    light = [v for v in dw if not any(e.primitive.name in PRODUCTS
                                      for e in needed(eqns, [v], seen))]
    second = needed(eqns, [*dx, *light], made_first)
    is_late = _defined(second) | set(dy_in)
    third = needed(eqns, dw, made_first | is_late)
    early = [*first, *second]
    moving = _moving(early, [*x_in, *dy_in])
    source = {e.outvars[0]: e.invars[0] for e in early
              if e.primitive.name in VIEWS and isinstance(e.invars[0], Var)}

    def carried(read: Iterable[Var]) -> dict[Var, None]:
        found: dict[Var, None] = {}
        for v in read:
            while v in source:
                v = source[v]
            if v in moving:
                found[v] = None
        return found

    read_second = [*read(second), *variables(dx)]
    read_third = [*read(third), *variables(dw)]
    for_w = [v for v in carried(read_third) if v in is_late]
    for_b = [v for v in carried([*read_second, *read_third]) if v not in is_late]
    return _Shares(
        forward=first,
        input=needed(first, read_second, set(for_b)) + second,
        weight=needed(early, read_third, {*for_b, *for_w}) + third,
        for_b=for_b,
        for_w=for_w,
    )


def needed(eqns: Iterable[JaxprEqn], outs: Iterable[Any],
           made: frozenset[Var] | set[Var] = frozenset()) -> list[JaxprEqn]:
    """The equations that `outs` need and that did not make `made`, in order.

    A loop that carries both input and weight gradients is cut to what is needed of it.
    """
    live, kept = set(variables(outs)) - made, []
    for eqn in reversed(list(eqns)):
        wanted = [v in live for v in eqn.outvars]
        if any(wanted):
            eqn = _loop_part(eqn, wanted) if eqn.primitive.name == "while" else eqn
            kept.append(eqn)
            live |= set(read([eqn])) - made
    return kept[::-1]


def _moving(eqns: Iterable[JaxprEqn], begin: Iterable[Var]) -> set[Var]:
    """Return the variables that depend on `begin`, and those of `begin`."""
    found = set(begin)
    for eqn in eqns:
        if any(v in found for v in read([eqn])):
            found |= _defined([eqn])
    return found


def _loop_part(eqn: JaxprEqn, wanted: list[bool]) -> JaxprEqn:
    """A while loop that carries only what the wanted results and its condition depend on."""
    test, body = eqn.params["cond_jaxpr"], eqn.params["body_jaxpr"]
    n_test, n_body = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
    if body.consts:
        return eqn
    consts, carried = body.jaxpr.invars[:n_body], body.jaxpr.invars[n_body:]
    tested = set(read(test.jaxpr.eqns)) | set(variables(test.jaxpr.outvars))
    keep = [w or v in tested for w, v in zip(wanted, test.jaxpr.invars[n_test:], strict=True)]
    while True:
        outs = [v for v, k in zip(body.jaxpr.outvars, keep, strict=True) if k]
        own = needed(body.jaxpr.eqns, outs)
        reads = set(read(own)) | set(variables(outs))
        more = [k or v in reads for k, v in zip(keep, carried, strict=True)]
        if more == keep:
            break
        keep = more
    keep_consts = [v in reads for v in consts]

    def chosen(items: Sequence[Any], which: list[bool]) -> list[Any]:
        return [item for item, k in zip(items, which, strict=True) if k]

    new_body = body.jaxpr.replace(
        invars=chosen(consts, keep_consts) + chosen(carried, keep), outvars=outs, eqns=own)
    new_test = test.jaxpr.replace(
        invars=list(test.jaxpr.invars[:n_test]) + chosen(test.jaxpr.invars[n_test:], keep))
    given = eqn.invars
    params = dict(eqn.params, body_jaxpr=ClosedJaxpr(new_body, []), body_nconsts=sum(keep_consts),
                  cond_jaxpr=ClosedJaxpr(new_test, test.consts))
    return eqn.replace(
        invars=[*given[:n_test], *chosen(given[n_test : n_test + n_body], keep_consts),
                *chosen(given[n_test + n_body:], keep)],
        outvars=chosen(eqn.outvars, keep), params=params)


def _defined(eqns: Iterable[JaxprEqn]) -> set[Var]:
    return {v for eqn in eqns for v in eqn.outvars}


def _cut(items: Sequence[Any], counts: Iterable[int]) -> list[list[Any]]:
    """Neighboring lists of the given lengths."""
    found, start = [], 0
    for count in counts:
        found.append(list(items[start : start + count]))
        start += count
    return found
