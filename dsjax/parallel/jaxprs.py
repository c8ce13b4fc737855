"""Traced programs as lists of equations: what they read, what they call, and one without calls."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var, jaxpr_as_fun

CALLS = {"jit": "jaxpr", "pjit": "jaxpr", "closed_call": "call_jaxpr", "remat2": "jaxpr",
         "checkpoint": "jaxpr", "remat": "jaxpr", "custom_jvp_call": "call_jaxpr",
         "custom_vjp_call": "call_jaxpr"}
"""Equations that only wrap others, and the parameter that holds those."""

PRODUCTS = {"dot_general", "ragged_dot", "ragged_dot_general", "conv_general_dilated", "while",
            "scan", "pallas_call", "custom_call"}
"""Equations that make a gradient worth postponing."""


def inlined(closed: ClosedJaxpr) -> Callable:
    """The same computation without the equations that only wrap others."""

    def run(jaxpr: Jaxpr, consts: Sequence[Any], args: Sequence[Any]) -> list[Any]:
        known = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True))

        def value(v: Any) -> Any:
            return v.val if isinstance(v, Literal) else known[v]

        for eqn in jaxpr.eqns:
            given = [value(v) for v in eqn.invars]
            inner = eqn.params.get(CALLS.get(eqn.primitive.name, ""))
            if isinstance(inner, Jaxpr):
                inner = ClosedJaxpr(inner, ())
            if isinstance(inner, ClosedJaxpr):
                scope = str(eqn.source_info.name_stack)
                with jax.named_scope(scope) if scope else contextlib.nullcontext():
                    found = run(inner.jaxpr, inner.consts, given)
            else:
                reads = list(dict.fromkeys(read([eqn])))
                one = jaxpr.replace(constvars=[], invars=reads, outvars=eqn.outvars, eqns=[eqn])
                found = jaxpr_as_fun(ClosedJaxpr(one, []))(*(known[v] for v in reads))
            known.update(zip(eqn.outvars, found, strict=True))
        return [value(v) for v in jaxpr.outvars]

    return lambda *args: run(closed.jaxpr, closed.consts, args)


def variables(atoms: Iterable[Any]) -> list[Var]:
    """Keep the variables of a list that may hold literals."""
    return [a for a in atoms if isinstance(a, Var)]


def read(eqns: Iterable[JaxprEqn]) -> list[Var]:
    """List the variables that equations read, in order and as often."""
    return [v for eqn in eqns for v in variables(eqn.invars)]


def primitives(eqn: JaxprEqn) -> set[str]:
    """Names of the primitives of an equation and of all within it."""
    names = {eqn.primitive.name}
    for parameter in jax.tree.leaves(
            tuple(eqn.params.values()), is_leaf=lambda p: isinstance(p, (Jaxpr, ClosedJaxpr))):
        inner = parameter.jaxpr if isinstance(parameter, ClosedJaxpr) else parameter
        if isinstance(inner, Jaxpr):
            for e in inner.eqns:
                names |= primitives(e)
    return names
