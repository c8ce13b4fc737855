"""Two computations that need nothing of each other, each exchange of one beside work of the other.

DualPipe's paired chunk (V3 report sec. 3.2.1, figure 4): while tokens of the forward travel to
their experts the backward multiplies, and the other way round. A compiler is free to find this
order, and with some luck finds a part of it. Here it is given: both computations are traced and cut
into phases, products and exchanges in turn, and run as

    products of f | exchange of f beside products of g | exchange of g beside products of f | ...

with an optimization barrier at every bar: what is beside each other may overlap and nothing else,
until f is at its end and the rest of g is one piece. The numbers are those of running f and then g.

`overlap` takes any two; `interleave` takes one function of rows and runs it over two halves of
them, forward and backward (V3 report sec. 3.4.1, without a pipeline).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.extend.core import ClosedJaxpr, JaxprEqn, Literal, Var, jaxpr_as_fun

from dsjax.layers.backend import Constrain
from dsjax.numerics.vary import varies
from dsjax.parallel import jaxprs
from dsjax.params import Tree

EXCHANGES = {"all_to_all", "ragged_all_to_all", "ppermute"}


class _Computation:
    """One of the two: its phases, and the values it has made so far."""

    def __init__(self, f: Callable, args: Sequence[Any]) -> None:
        closed, shapes = jax.make_jaxpr(f, return_shape=True)(*args)
        given = jax.tree.leaves(tuple(args))
        flat = jax.make_jaxpr(jaxprs.inlined(closed))(*given)
        self.jaxpr, self.tree = flat.jaxpr, jax.tree.structure(shapes)
        self.phases = phases(self.jaxpr.eqns)
        self.values: dict[Var, Any] = dict(zip(
            [*self.jaxpr.constvars, *self.jaxpr.invars], [*flat.consts, *given], strict=True))

    def run(self, number: int) -> list[Var]:
        """Run a phase and return the variables of it that are read later, constants left out."""
        own = self.phases[number]
        later = [e for phase in self.phases[number + 1:] for e in phase]
        wanted = set(jaxprs.read(later)) | set(jaxprs.variables(self.jaxpr.outvars))
        made = [v for e in own for v in e.outvars if v in wanted]
        here = {v for e in own for v in e.outvars}
        reads = [v for v in dict.fromkeys(jaxprs.read(own)) if v not in here]
        part = self.jaxpr.replace(constvars=[], invars=reads, outvars=made, eqns=own)
        found = jaxpr_as_fun(ClosedJaxpr(part, []))(*(self.values[v] for v in reads))
        self.values.update(zip(made, found, strict=True))
        constants = {v for e in own if not jaxprs.read([e]) for v in e.outvars}
        return [v for v in made if v not in constants]

    def result(self) -> Any:
        """Return what the computation returns, once all phases have run."""
        outs = [v.val if isinstance(v, Literal) else self.values[v] for v in self.jaxpr.outvars]
        return jax.tree.unflatten(self.tree, outs)


def overlap(f: Callable, f_args: Sequence[Any], g: Callable, g_args: Sequence[Any]) -> tuple:
    """Return f(*f_args) and g(*g_args); g begins when the first products of f are done.

    Arguments wait at the first bar. What f and g close over, as weights, is read as it is.
    """
    first, second = _Computation(f, f_args), _Computation(g, g_args)
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


def _bar(made: Iterable[tuple[_Computation, Sequence[Var]]]) -> None:
    """Let nothing after begin before all of this is done.

    A barrier makes all that passes vary alike. Values replicated over an axis are constants or sums
    over that axis, both small, so they need not be ordered.
    """
    places = [(one, v) for one, variables in made for v in variables]
    most = max((len(varies(one.values[v])) for one, v in places), default=0)
    places = [(one, v) for one, v in places if len(varies(one.values[v])) == most]
    if places:
        ordered = lax.optimization_barrier([one.values[v] for one, v in places])
        for (one, v), value in zip(places, ordered, strict=True):
            one.values[v] = value


def phases(eqns: Iterable[JaxprEqn]) -> list[list[JaxprEqn]]:
    """Cut equations, in order, into those with products and those with exchanges, in turn.

    What is neither stays with what is before it, and so do exchanges below a sixteenth of the
    largest: counts of rows travel in no time, and shall not take the work that rows need beside
    them. A shard_map that exchanges is an exchange, with the experts in it. The first phase has
    products or is empty.
    """
    eqns = list(eqns)
    names = [jaxprs.primitives(eqn) for eqn in eqns]
    large = max((_bytes(e) for e, n in zip(eqns, names, strict=True) if n & EXCHANGES), default=0)
    found: list[list[JaxprEqn]] = [[]]
    is_exchange = False
    for eqn, inner in zip(eqns, names, strict=True):
        exchanges = bool(inner & EXCHANGES)
        multiplies = bool(inner & jaxprs.PRODUCTS) and not (exchanges and "shard_map" in inner)
        if multiplies or (exchanges and 16 * _bytes(eqn) >= large):
            if is_exchange == multiplies:
                found.append([])
            is_exchange = not multiplies
        found[-1].append(eqn)
    return found


def _bytes(eqn: JaxprEqn) -> int:
    """Return the size of the largest result."""
    made: list[Any] = [v.aval for v in eqn.outvars]
    return max((a.size * a.dtype.itemsize for a in made), default=0)


def interleave(f: Callable[..., Tree], whole: Tree, *rows: Array, constrain: Constrain) -> Tree:
    """Return f(whole, *rows), computed over two halves of the rows that overlap.

    As `map_rows`: f returns arrays that lead with rows, here also numbers, which are added. Its
    gradient overlaps as well: that of a half's exchange stands beside products of the other half.
    """
    first, second = zip(*(_halves(a, constrain) for a in rows), strict=True)
    return jax.tree.map(_joined, *_both(f, whole, first, second))


def _halves(a: Array, constrain: Constrain) -> list[Array]:
    """Every other row, twice: neighboring rows are on one device, so none moves."""
    cut = a.reshape(-1, 2, *a.shape[1:])
    axes = ("batch",) + (None,) * (a.ndim - 1)
    return [constrain(cut[:, half], axes) for half in range(2)]


def _joined(first: Array, second: Array) -> Array:
    """Rows in their order before `_halves`; numbers are added."""
    if not first.ndim:
        return first + second
    return jnp.stack([first, second], axis=1).reshape(-1, *first.shape[1:])


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _both(f: Callable, whole: Tree, first: tuple, second: tuple) -> tuple[Tree, Tree]:
    one = functools.partial(f, whole)
    return overlap(one, first, one, second)


def _both_forward(f: Callable, whole: Tree, first: tuple, second: tuple) -> tuple:
    def one(*rows: Array) -> tuple:
        return jax.vjp(f, whole, *rows)

    (y_first, pull_first), (y_second, pull_second) = overlap(one, first, one, second)
    return (y_first, y_second), (pull_first, pull_second)


def _both_backward(f: Callable, pulls: tuple, dy: tuple) -> tuple:
    first, second = overlap(pulls[0], dy[:1], pulls[1], dy[1:])
    return jax.tree.map(_added, first[0], second[0]), tuple(first[1:]), tuple(second[1:])


def _added(a: Array, b: Array) -> Array:
    """Add two gradients; of integers there are none."""
    return a if a.dtype == jax.dtypes.float0 else a + b


_both.defvjp(_both_forward, _both_backward)
