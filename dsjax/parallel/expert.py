"""Expert parallelism: every token to its experts' devices and back, none dropped.

A stage of the exchange works along one axis of the mesh, whose P devices share some experts. Each
token is sent once to each device that holds any of its experts, with its choices and weights; there
`inner` sums the outputs of those experts, and the sum comes back to be added to the others. Experts
on one device are the innermost work; a second stage inside the first is the report's hierarchical
all-to-all: once to each node over the slow links, to the device of the same place in the node, then
within the node (V3 report sec. 3.2.2).

Dropless with bounded memory: a stage has room for C rows a pair of devices, a little over what
balanced routing sends. What exceeds it on any pair travels in another round, until nothing is left.
The first round keeps what its backward pass reads. Later ones, which balance makes rare, are a
loop that keeps nothing: the backward pass sends their rows again.

Rows move by gathers in both directions, so that no gradient is a scatter.

Axes: T tokens of this device, K experts per token, P devices of the axis, C rows of a part, R = P C
rows received, D model.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.ad_checkpoint import checkpoint_name

from dsjax.numerics.wire import EXACT, WireFormat
from dsjax.ops import buckets
from dsjax.parallel import exchange
from dsjax.parallel.exchange import MeshAxis

Tree = Any

Inner = Callable[[Array, Array, Array, Tree, Tree], tuple[Array, Array]]
"""x [R, D], experts [R, K] counted from this device's first (out of range: elsewhere), weights
[R, K], masters, quantized operands -> the weighted sums [R, D], extra rounds []."""


@dataclasses.dataclass(frozen=True)
class ExchangeStage:
    """One stage of the hierarchical all-to-all, and the work at its other end."""

    axis: MeshAxis
    devices: int  # P
    experts: int  # of all devices of the axis together
    rows: int  # C
    wire: WireFormat
    inner: Inner | ExchangeStage


class Copies(NamedTuple):
    """Copies of tokens by device: the j-th for device p is assignment order[start[p] + j]."""

    experts: Array  # [T, K] chosen by each token, out of range where elsewhere
    order: Array  # [T*K]
    start: Array  # [P]
    sizes: Array  # [P] copies for each device
    device: Array  # [T, K] where the copy of this assignment goes
    position: Array  # [T, K] j of that copy; -1 where an earlier choice of the token has it


def make_copies(experts: Array, count: int, devices: int) -> Copies:
    """One copy of a token for each device that holds any of its experts.

    experts [T, K], of `count` experts that lie in order on `devices` devices; others are elsewhere.
    """
    tokens, per_token = experts.shape
    is_here = (experts >= 0) & (experts < count)
    device = jnp.where(is_here, experts // (count // devices), devices)
    earlier = jnp.tril(jnp.ones((per_token, per_token), bool), -1)
    is_again = ((device[:, :, None] == device[:, None, :]) & earlier[None]).any(-1)
    is_copy = is_here & ~is_again
    wanted = jnp.where(is_copy, device, devices).reshape(-1)
    counts, place = buckets.sizes(wanted, devices), buckets.places(wanted, devices)
    start = jnp.cumsum(counts, dtype=jnp.int32) - counts
    total = tokens * per_token
    at = jnp.arange(total, dtype=jnp.int32)
    first = start[jnp.minimum(wanted, devices - 1)]
    row = jnp.where(is_copy.reshape(-1), first + place, total + at)
    order = jnp.zeros(total, jnp.int32).at[row].set(at, unique_indices=True)
    position = jnp.where(is_copy, place.reshape(experts.shape), -1)
    return Copies(experts, order, start, counts, device.astype(jnp.int32), position)


def routed(stage: ExchangeStage, x: Array, experts: Array, weights: Array, masters: Tree,
           quantized: Tree) -> tuple[Array, Array]:
    """The work of `stage.inner` for every token, done where its experts are; runs in a shard_map.

    x [T, D], experts and weights [T, K]; masters receive gradients, quantized operands do not.
    Returns [T, D] and how many rounds beyond the first were needed, the same on every device.
    """
    if stage.devices == 1:
        return _inner(stage)(x, experts, weights, masters, quantized)
    copies = make_copies(experts, stage.experts, stage.devices)
    rounds = lax.pmax(-(-copies.sizes.max() // stage.rows), stage.axis.everywhere)
    return _rounds(stage, x, weights, masters, quantized, copies, rounds)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _rounds(stage: ExchangeStage, x: Array, weights: Array, masters: Tree, quantized: Tree,
            copies: Copies, rounds: Array) -> tuple[Array, Array]:
    return _rounds_forward(stage, x, weights, masters, quantized, copies, rounds)[0]


def _rounds_forward(stage, x, weights, masters, quantized, copies, rounds):
    def run(r, x, weights, masters):
        return _round(stage, r, x, weights, masters, quantized, copies)

    y, pull, extra = jax.vjp(functools.partial(run, 0), x, weights, masters, has_aux=True)

    def another(state):
        r, y, extra = state
        more, inner_extra = run(r, x, weights, masters)
        return r + 1, y + more, extra + inner_extra + 1.0

    _, y, extra = lax.while_loop(lambda s: s[0] < rounds, another, (jnp.int32(1), y, extra))
    return (y, extra), (pull, x, weights, masters, quantized, copies, rounds)


def _rounds_backward(stage, saved, cotangents):
    pull, x, weights, masters, quantized, copies, rounds = saved
    dy, _ = cotangents

    def another(state):
        r, grads = state

        def run(x, weights, masters):
            return _round(stage, r, x, weights, masters, quantized, copies)

        again = jax.vjp(run, x, weights, masters, has_aux=True)[1]
        return r + 1, jax.tree.map(jnp.add, grads, again(dy))

    _, grads = lax.while_loop(lambda s: s[0] < rounds, another, (jnp.int32(1), pull(dy)))
    return (*grads, None, None, None)


_rounds.defvjp(_rounds_forward, _rounds_backward)


def _round(stage: ExchangeStage, r: Array | int, x: Array, weights: Array, masters: Tree,
           quantized: Tree, copies: Copies) -> tuple[Array, Array]:
    """Rows r C to (r + 1) C of every part: out, worked on, and back."""
    axis, wire = stage.axis, stage.wire
    first = jnp.int32(r) * stage.rows
    sent = jnp.clip(copies.sizes - first, 0, stage.rows)
    received = exchange.counts(sent, axis)
    token, slot = _rows(stage, copies, first)
    x_rows = _take(x, token, slot)
    x_rows = exchange.exchange_rows(axis, wire.out, wire.back, x_rows, sent, received)
    w_rows = _take(weights, token, slot)
    w_rows = exchange.exchange_rows(axis, EXACT, EXACT, w_rows, sent, received)
    numbers = (copies.experts + 1).at[token].get(mode="fill", fill_value=0)  # an empty row's is 0
    ids = exchange.move(numbers, sent, received, axis) - 1
    mine = ids - lax.axis_index(axis.name) * (stage.experts // stage.devices)
    mine = jnp.where(ids >= 0, mine, -1)
    mine, w_rows = (checkpoint_name(a, "expert_input") for a in (mine, w_rows))
    y_rows, extra = _inner(stage)(x_rows, mine, w_rows, masters, quantized)
    y_rows = exchange.exchange_rows(axis, wire.back, wire.out, y_rows, received, sent)
    return _give(y_rows, token, slot), extra


def _inner(stage: ExchangeStage) -> Inner:
    """The work at the other end of a stage: the next stage, or the experts."""
    inner = stage.inner
    return functools.partial(routed, inner) if isinstance(inner, ExchangeStage) else inner


def _rows(stage: ExchangeStage, copies: Copies, first: Array) -> tuple[Array, Array]:
    """Token in each row of a round, [P*C] (T when empty), and row of each copy, [T, K] (P*C)."""
    at = first + jnp.arange(stage.rows, dtype=jnp.int32)[None]
    total, per_token = copies.order.size, copies.device.shape[1]
    index = jnp.minimum(copies.start[:, None] + at, total - 1)
    assignment = jnp.where(at < copies.sizes[:, None], copies.order[index], total)
    row = copies.position - first
    is_now = (copies.position >= 0) & (row >= 0) & (row < stage.rows)
    slot = jnp.where(is_now, copies.device * stage.rows + row, stage.devices * stage.rows)
    return (assignment // per_token).reshape(-1), slot


@jax.custom_vjp
def _take(x: Array, token: Array, slot: Array) -> Array:
    """Rows of x [T, ...] by token [R], zeros where there is none."""
    return x.at[token].get(mode="fill", fill_value=0)


@jax.custom_vjp
def _give(rows: Array, token: Array, slot: Array) -> Array:
    """Add up each token's rows: rows [R, ...], slot [T, K] -> [T, ...]."""
    found = rows.at[slot.reshape(-1)].get(mode="fill", fill_value=0)
    return found.reshape(*slot.shape, *rows.shape[1:]).sum(axis=1)


_take.defvjp(
    lambda x, token, slot: (_take(x, token, slot), (token, slot)),
    lambda kept, d_rows: (_give(d_rows, *kept), None, None),
)
_give.defvjp(
    lambda rows, token, slot: (_give(rows, token, slot), (token, slot)),
    # Indices of its own: a compiler that saw that these rows and those of a block made again have
    # the same would gather both at once, and the gradient would wait for the block.
    lambda kept, d: (_take(d, *lax.optimization_barrier(kept)), None, None),
)
