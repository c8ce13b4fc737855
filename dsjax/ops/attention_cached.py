"""Attention of new tokens over a cached past that holds them, whole or block by block.

Grouped-query attention, and with one key-value head the absorbed form of latent attention, whose
values are a part of its keys. Softmax is float32.

Axes: B batch, T query time, S key time, H heads, N channels of a score, U channels of a value.
This file's own letters: Y key-value heads, G query heads of each.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array, lax

from dsjax.numerics.wide import exact, wide
from dsjax.ops.attention import NEVER

Past = tuple[tuple[Array, ...], Array]
"""Parts [B, S, Y, N] of keys, whose scores add up, and values [B, S, Y, U]."""


def attend_cached(queries: tuple[Array, ...], keys: tuple[Array, ...], values: Array,
                  positions: Array, scale: float) -> Array:
    """Attend to the whole past at once, each token up to its own position.

    queries: parts [B, T, H, N]; positions [B, T]. Query head h reads key-value head h // (H / Y).
    Returns [B, T, H, U].
    """
    heads = _Heads(queries, values.shape[2])
    at = jnp.arange(values.shape[1], dtype=positions.dtype)
    scores = heads.scores(keys, at, positions, scale)
    return heads.out(heads.weighted(jax.nn.softmax(scores, axis=-1), values))


def attend_blocks(queries: tuple[Array, ...], past: Callable[[Array], Past], positions: Array,
                  scale: float, block: int) -> Array:
    """As `attend_cached`, over blocks of `block` positions up to the newest of any row.

    `past(j)` is block j. The softmax is made with a running maximum and sum; a block beyond a row's
    position leaves the row's numbers as they are, to the bit, so that a row's result does not
    depend on how long the others are.
    """
    one = jax.eval_shape(past, jax.ShapeDtypeStruct((), jnp.int32))[1]
    heads = _Heads(queries, one.shape[2])
    row, dtype = heads.row, wide(queries[0].dtype)

    def add(j: Array, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        top, total, out = state
        keys, values = past(j)
        at = j * block + jnp.arange(block, dtype=positions.dtype)
        scores = heads.scores(keys, at, positions, scale)
        new_top = jnp.maximum(top, scores.max(axis=-1))
        p, shrink = jnp.exp(scores - new_top[..., None]), jnp.exp(top - new_top)
        part = heads.weighted(p, values).astype(dtype)
        return new_top, total * shrink + p.sum(-1), out * heads.by_row(shrink) + part

    first = (jnp.full(row, NEVER, dtype), jnp.zeros(row, dtype),
             jnp.zeros((*heads.out_shape, one.shape[-1]), dtype))
    _, total, out = lax.fori_loop(0, positions.max() // block + 1, add, first)
    return heads.out((out / heads.by_row(total)).astype(one.dtype))


class _Heads:
    """Queries by the key-value head they read, and the two products with a past.

    With one key-value head its dim is left out: XLA makes other products of a dim of one.
    """

    def __init__(self, queries: tuple[Array, ...], shared: int) -> None:
        self.batch, self.new, self.heads, _ = queries[0].shape
        self.y = "y" if shared > 1 else ""
        self.split = [shared, self.heads // shared] if shared > 1 else [self.heads]
        self.queries = [q.reshape(self.batch, self.new, *self.split, -1) for q in queries]

    @property
    def row(self) -> tuple[int, ...]:
        """Shape of a number for every head and token, as scores lead with it."""
        return (self.batch, *self.split, self.new)

    @property
    def out_shape(self) -> tuple[int, ...]:
        """The same, as outputs lead with it."""
        return (self.batch, self.new, *self.split)

    def by_row(self, a: Array) -> Array:
        """A number for every head and token, beside an output's channels."""
        return jnp.moveaxis(a, -1, 1)[..., None]

    def scores(self, keys: tuple[Array, ...], at: Array, positions: Array, scale: float) -> Array:
        """Scaled scores [B, (Y), G, T, S], NEVER at positions `at` beyond a token's own."""
        keys = tuple(self._part(k) for k in keys)
        s = functools.reduce(jnp.add, (
            jnp.einsum(f"bt{self.y}gn,bs{self.y}n->b{self.y}gts", q, k,
                       precision=exact(q.dtype), preferred_element_type=wide(q.dtype))
            for q, k in zip(self.queries, keys, strict=True)))
        is_past = at[None, None] <= positions[..., None]
        is_past = is_past.reshape(self.batch, *[1] * len(self.split), self.new, -1)
        return jnp.where(is_past, s * scale, NEVER)

    def weighted(self, weights: Array, values: Array) -> Array:
        """Sum of values by their weights, [B, T, (Y), G, U].

        The weights are the left operand, queries and tokens its rows. The einsum of the same sum
        takes the values first, a tenth as fast on a CPU where one token is new.
        """
        *lead, new, past = weights.shape
        rows = weights.astype(values.dtype).reshape(*lead[:-1], lead[-1] * new, past)
        batch = ((0, 1), (0, 2)) if self.y else ((0,), (0,))
        out = lax.dot_general(rows, self._part(values), (((rows.ndim - 1,), (1,)), batch),
                              exact(rows.dtype))
        return jnp.moveaxis(out.reshape(*lead, new, -1), -2, 1)

    def out(self, a: Array) -> Array:
        """[B, T, (Y), G, U] -> [B, T, H, U]."""
        return a.reshape(self.batch, self.new, self.heads, -1)

    def _part(self, a: Array) -> Array:
        return a if self.y else a[:, :, 0]
