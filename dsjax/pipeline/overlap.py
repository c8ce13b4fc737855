"""Two computations that need nothing of each other, each exchange of one beside work of the other.

DualPipe's paired chunk (V3 report sec. 3.2.1, figure 4): while tokens of the forward travel to
their experts the backward multiplies, and the other way round. A compiler is free to find this
order, and with some luck finds a part of it. Here it is given: both computations are traced and cut
into phases, products and exchanges in turn, and run as

    products of f | exchange of f beside products of g | exchange of g beside products of f | ...

with an optimization barrier at every bar: what is beside each other may overlap and nothing else,
until f is at its end and the rest of g is one piece. The numbers are those of running f and then g.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
from jax import lax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var, jaxpr_as_fun

from dsjax.numerics.vary import varies
from dsjax.pipeline import split_vjp

EXCHANGES = {"all_to_all", "ragged_all_to_all", "ppermute"}


class _Thread:
    """One of the two: its phases, and what it has made so far."""

    def __init__(self, f: Callable, args: Sequence[Any]) -> None:
        closed, shapes = jax.make_jaxpr(f, return_shape=True)(*args)
        given = jax.tree.leaves(tuple(args))
        flat = jax.make_jaxpr(split_vjp.inlined(closed))(*given)
        self.jaxpr, self.tree = flat.jaxpr, jax.tree.structure(shapes)
        self.phases = phases(self.jaxpr.eqns)
        self.values: dict[Var, Any] = dict(zip(
            [*self.jaxpr.constvars, *self.jaxpr.invars], [*flat.consts, *given], strict=True))

    def run(self, number: int) -> list[Var]:
        """Run a phase; what it made that is read later."""
        own = self.phases[number]
        later = [e for phase in self.phases[number + 1:] for e in phase]
        wanted = set(split_vjp.read(later)) | set(split_vjp.variables(self.jaxpr.outvars))
        made = [v for e in own for v in e.outvars if v in wanted]
        here = {v for e in own for v in e.outvars}
        reads = [v for v in dict.fromkeys(split_vjp.read(own)) if v not in here]
        part = self.jaxpr.replace(constvars=[], invars=reads, outvars=made, eqns=own)
        found = jaxpr_as_fun(ClosedJaxpr(part, []))(*(self.values[v] for v in reads))
        self.values.update(zip(made, found, strict=True))
        return made

    def result(self) -> Any:
        """What the computation returns."""
        outs = [v.val if isinstance(v, Literal) else self.values[v] for v in self.jaxpr.outvars]
        return jax.tree.unflatten(self.tree, outs)


def weave(f: Callable, f_args: Sequence[Any], g: Callable, g_args: Sequence[Any]) -> tuple:
    """f(*f_args) and g(*g_args), which begins when the first products of f are done."""
    first, second = _Thread(f, f_args), _Thread(g, g_args)
    _bar([(second, second.jaxpr.invars), (first, first.run(0))])
    for number in range(1, max(len(first.phases), len(second.phases) + 1)):
        made = []
        if number < len(first.phases):
            made.append((first, first.run(number)))
        if number <= len(second.phases):
            made.append((second, second.run(number - 1)))
        if number < len(first.phases):  # nothing is beside what comes after
            _bar(made)
    return first.result(), second.result()


def _bar(made: Iterable[tuple[_Thread, Sequence[Var]]]) -> None:
    """Let nothing after begin before all of this is done.

    A barrier makes all that passes vary alike. What is the same on some axis comes of constants or
    of a sum over that axis, both small, and may come when it likes.
    """
    places = [(thread, v) for thread, variables in made for v in variables]
    most = max((len(varies(thread.values[v])) for thread, v in places), default=0)
    places = [(thread, v) for thread, v in places if len(varies(thread.values[v])) == most]
    if places:
        held = lax.optimization_barrier([thread.values[v] for thread, v in places])
        for (thread, v), value in zip(places, held, strict=True):
            thread.values[v] = value


def phases(eqns: Iterable[JaxprEqn]) -> list[list[JaxprEqn]]:
    """Cut equations, in order, into those with products and those with exchanges, in turn.

    What is neither stays with what is before it, and so do exchanges below a sixteenth of the
    largest: counts of rows travel in no time, and shall not take the work that rows need beside
    them. The first phase has products or is empty.
    """
    eqns = list(eqns)
    names = [_primitives(eqn) for eqn in eqns]
    large = max((_bytes(e) for e, n in zip(eqns, names, strict=True) if n & EXCHANGES), default=0)
    found: list[list[JaxprEqn]] = [[]]
    is_exchange = False
    for eqn, inner in zip(eqns, names, strict=True):
        has_products = not inner.isdisjoint(split_vjp.PRODUCTS)
        if has_products or (inner & EXCHANGES and 16 * _bytes(eqn) >= large):
            if is_exchange == has_products:
                found.append([])
            is_exchange = not has_products
        found[-1].append(eqn)
    return found


def _bytes(eqn: JaxprEqn) -> int:
    """Of the largest result."""
    made: list[Any] = [v.aval for v in eqn.outvars]
    return max((a.size * a.dtype.itemsize for a in made), default=0)


def _primitives(eqn: JaxprEqn) -> set[str]:
    """Names of the primitives of an equation and of all within it."""
    names = {eqn.primitive.name}
    for parameter in jax.tree.leaves(
            tuple(eqn.params.values()), is_leaf=lambda p: isinstance(p, (Jaxpr, ClosedJaxpr))):
        inner = parameter.jaxpr if isinstance(parameter, ClosedJaxpr) else parameter
        if isinstance(inner, Jaxpr):
            for e in inner.eqns:
                names |= _primitives(e)
    return names
