"""Attention by a flash kernel that a vendor keeps, over rows of documents.

The kernel's contract, `Flash`, is cuDNN's: [B, T, H, N] in bfloat16, heads of one size in queries,
keys and values, and either plain causal rows or documents that lie packed in them. Documents are
told by where each begins in its row and by how many tokens it has; a place that no document takes
is -1. What the kernel leaves at tokens of no document is undefined, in gradients too.

Here are what the contract asks for, its layout, sizes and documents, and what it does not give:
padding looks only at itself, and rows that it cannot say (more documents than `documents`, or one
whose parts lie apart) go to the plain blocks. Whether all rows can be said is a value of the batch,
so the choice is made on the device, by a condition.

Axes: B batch, H heads, T query time, N channels of a score, U channels of a value.
This file's own letter: M, the documents a row may have.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike

WIDEST = 256  # channels of a head that cuDNN takes on Hopper GPUs
GRAIN = 8  # and of which their number is a multiple


class Documents(NamedTuple):
    """Documents of rows: where each begins [B, M + 1] and its tokens [B, M]; -1 where none is.

    The last column of `starts` is always -1: the kernel reads one place more than there are
    documents, as the end of the last.
    """

    starts: Array
    lengths: Array


class Flash(NamedTuple):
    """A kernel: forward pass with what its backward pass reads, and the backward pass.

    forward(q, k, v, documents or None for causal rows, scale) -> out, statistics
    backward(q, k, v, documents, (statistics, out), d_out, scale) -> dq, dk, dv
    """

    forward: Callable[..., tuple[Array, Array]]
    backward: Callable[..., tuple[Array, Array, Array]]


Plain = Callable[[Array, Array, Array, Array, float], Array]
"""`Attend`: q [B, H, T, N], k, v [B, H, T, U], segments [B, T], scale -> [B, H, T, U]."""


class Choice(NamedTuple):
    """A kernel, the plain form for rows it cannot say, and documents a row may have."""

    flash: Flash
    plain: Plain
    documents: int = 16
    """1: rows of one document, causal ones."""
    dtype: DTypeLike = jnp.bfloat16
    """Of operands; a kernel has no other, its twin may."""


def attend(q: Array, k: Array, v: Array, segments: Array, scale: float, *,
           choice: Choice) -> Array:
    """Causal attention within segments; shapes as `ops.attention.attend_plain`.

    Multiplies in the choice's dtype with float32 sums and softmax. Heads wider than the kernel
    takes go to the plain form.
    """
    wide, value_dim = max(q.shape[-1], v.shape[-1]), v.shape[-1]
    wide += -wide % GRAIN
    if wide > WIDEST:
        return choice.plain(q, k, v, segments, scale)
    is_real = (segments != 0)[:, :, None, None]
    by_token = [_by_token(a.astype(choice.dtype), wide, is_real) for a in (q, k, v)]
    rows = _Rows(segments, *_documents(segments, choice.documents))
    out = _attend(*by_token, rows, _Form(choice, float(scale), q.shape[-1], value_dim))
    out = jnp.where(is_real, out[..., :value_dim].astype(v.dtype), v.swapaxes(1, 2))
    return out.swapaxes(1, 2)


class _Rows(NamedTuple):
    """A batch's rows: segments [B, T], documents, and True [] if the kernel can be told them."""

    segments: Array
    documents: Documents | None
    can_say: Array


class _Form(NamedTuple):
    """Choices made before any batch, and channels of scores and values."""

    choice: Choice
    scale: float
    scored: int
    valued: int

    def plain(self, q: Array, k: Array, v: Array, segments: Array) -> Array:
        """The plain form of arrays laid out and padded for the kernel."""
        wide = q.shape[-1]
        q, k, v = (a[..., :size].swapaxes(1, 2) for a, size in
                   ((q, self.scored), (k, self.scored), (v, self.valued)))
        out = self.choice.plain(q, k, v, segments, self.scale).swapaxes(1, 2)
        return jnp.pad(out, ((0, 0), (0, 0), (0, 0), (0, wide - self.valued)))


def _by_token(a: Array, wide: int, is_real: Array) -> Array:
    """[B, H, T, n] -> [B, T, H, `wide`], padding zero, and so its gradients."""
    a = jnp.pad(a, ((0, 0), (0, 0), (0, 0), (0, wide - a.shape[-1])))
    return jnp.where(is_real, a.swapaxes(1, 2), 0)


def _documents(segments: Array, most: int) -> tuple[Documents | None, Array]:
    """Places of the documents of rows, and True [] if the kernel can be told them.

    A document is a run of one segment that is not 0. Segments count up along a row, so that one
    lower than another before it may be a document's second part.
    """
    before = jnp.pad(segments, ((0, 0), (1, 0)))[:, :-1]
    is_real = segments != 0
    opens = is_real & (segments != before)
    rises = segments > lax.cummax(before, axis=1)
    counts = opens.sum(axis=1, dtype=jnp.int32)
    can_say = (counts.max() <= most) & (rises | ~opens).all()
    if most == 1:  # causal rows: nothing before the document
        return None, can_say & (is_real[:, 0] | (counts == 0)).all()
    number = jnp.cumsum(opens, axis=1, dtype=jnp.int32) - 1
    places = jnp.arange(most, dtype=jnp.int32)[None, None]
    mine = is_real[:, :, None] & (number[:, :, None] == places)
    at = jnp.arange(segments.shape[1], dtype=jnp.int32)[None, :, None]
    lengths = mine.sum(axis=1, dtype=jnp.int32)
    starts = jnp.where(mine, at, segments.shape[1]).min(axis=1)
    starts, lengths = (jnp.where(lengths > 0, a, -1) for a in (starts, lengths))
    return Documents(jnp.pad(starts, ((0, 0), (0, 1)), constant_values=-1), lengths), can_say


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attend(q: Array, k: Array, v: Array, rows: _Rows, form: _Form) -> Array:
    return _forward(q, k, v, rows, form)[0]


def _forward(q: Array, k: Array, v: Array, rows: _Rows, form: _Form) -> tuple[Array, Any]:
    """Keeps the operands, the output and what the kernel calls its statistics."""
    fast = functools.partial(form.choice.flash.forward, documents=rows.documents, scale=form.scale)
    out, statistics = jax.eval_shape(fast, q, k, v)

    def slow(q: Array, k: Array, v: Array) -> tuple[Array, Array]:
        plain = form.plain(q, k, v, rows.segments).astype(out.dtype)
        return plain, jnp.zeros(statistics.shape, statistics.dtype)

    out, statistics = lax.cond(rows.can_say, fast, slow, q, k, v)
    out = checkpoint_name(out, "attention")
    statistics = checkpoint_name(statistics, "attention")
    return out, (q, k, v, rows, out, statistics)


def _backward(form: _Form, kept: Any, d_out: Array) -> tuple[Any, ...]:
    q, k, v, rows, out, statistics = kept

    def fast(q: Array, k: Array, v: Array, d_out: Array) -> tuple[Array, Array, Array]:
        return form.choice.flash.backward(q, k, v, rows.documents, (statistics, out), d_out,
                                          form.scale)

    def slow(q: Array, k: Array, v: Array, d_out: Array) -> tuple[Array, Array, Array]:
        def plain(q: Array, k: Array, v: Array) -> Array:
            return form.plain(q, k, v, rows.segments).astype(out.dtype)

        return jax.vjp(plain, q, k, v)[1](d_out)

    return *lax.cond(rows.can_say, fast, slow, q, k, v, d_out), None


_attend.defvjp(_forward, _backward)
