"""Causal attention within segments, by blocks of queries: no T x T array for long T.

The forward pass keeps the output and the log of each softmax's denominator; the backward pass
makes the probabilities again block by block (Dao et al., arXiv 2205.14135). Softmax is float32.
A query looks at keys of its own segment at or before it; segment 0 is padding, which looks only
at itself so that no row is empty.

Axes: B batch, H heads, T query time, S key time, N channels of a score, U channels of a value.
This file's own letters: Y key-value heads, G query heads of each.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.ad_checkpoint import checkpoint_name

from dsjax.numerics.layout import row_major
from dsjax.numerics.precision import contract
from dsjax.numerics.wide import exact, wide

UNROLLED_BLOCKS = 8  # up to this many blocks are written out, each with just the keys it may see
NEVER = -1e30  # a score that no softmax notices; finite, so that a masked block gives no NaN


def attend_plain(q: Array, k: Array, v: Array, segments: Array, scale: float) -> Array:
    """Plain form of `attend`: the whole [T, S] score matrix at once.

    q [B, H, T, N], k [B, H, S, N], v [B, H, S, U], segments [B, T]. Returns [B, H, T, U].
    """
    scores = jnp.einsum("bhtn,bhsn->bhts", q, k,
                        precision=exact(q.dtype), preferred_element_type=wide(q.dtype)) * scale
    scores = jnp.where(_visible(segments, segments, 0, 0)[:, None], scores, NEVER)
    weights = jax.nn.softmax(scores, axis=-1)
    return jnp.einsum("bhts,bhsu->bhtu", weights.astype(v.dtype), v, precision=exact(v.dtype))


def _visible(query_segments: Array, key_segments: Array, query_start: Array | int,
             key_start: Array | int) -> Array:
    """True where a query may look, [B, T, S]."""
    t = query_start + jnp.arange(query_segments.shape[1])
    s = key_start + jnp.arange(key_segments.shape[1])
    is_same = query_segments[:, :, None] == key_segments[:, None, :]
    is_real = (query_segments != 0)[:, :, None]
    is_self = (t[:, None] == s[None, :])[None]
    return (is_same & is_real & (s[None, :] <= t[:, None])[None]) | is_self


def attend(q: Array, k: Array, v: Array, segments: Array, scale: float, block: int = 128,
           is_low: bool = False) -> Array:
    """Attention by blocks of `block` queries; shapes as `attend_plain`.

    `is_low` multiplies in bfloat16 with float32 sums; softmax stays float32. A long T that blocks
    do not divide is filled with padding.
    """
    length = q.shape[2]
    fill = -length % block if length > UNROLLED_BLOCKS * block else 0
    if fill:
        q, k, v = (jnp.pad(a, ((0, 0), (0, 0), (0, fill), (0, 0))) for a in (q, k, v))
        segments = jnp.pad(segments, ((0, 0), (0, fill)))
    return _attend(q, k, v, segments, scale, block, is_low)[:, :, :length]


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def _attend(q: Array, k: Array, v: Array, segments: Array, scale: float, block: int,
            is_low: bool) -> Array:
    return _attend_forward(q, k, v, segments, scale, block, is_low)[0]


def _attend_forward(q: Array, k: Array, v: Array, segments: Array, scale: float, block: int,
                    is_low: bool):
    """Keeps the operands as they are multiplied: queries scaled, and narrow when `is_low`."""
    is_long = q.shape[2] > UNROLLED_BLOCKS * block
    form = _forward_scanned if is_long else _forward_unrolled
    dtype = v.dtype
    q, k, v = (a.astype(jnp.bfloat16 if is_low else a.dtype) for a in (q * scale, k, v))
    out, log_total = form(q, k, v, segments, block)
    out = checkpoint_name(out.astype(dtype), "attention")
    log_total = checkpoint_name(log_total, "attention")
    return out, (q, k, v, segments, out, log_total)


def _attend_backward(scale: float, block: int, is_low: bool, kept, d_out: Array):
    q, k, v, segments, out, log_total = kept
    is_long = q.shape[2] > UNROLLED_BLOCKS * block
    form = _backward_scanned if is_long else _backward_unrolled
    dtype = wide(out.dtype)
    inner = (d_out.astype(dtype) * out.astype(dtype)).sum(-1)
    dq, dk, dv = form(q, k, v, segments, log_total, inner, d_out.astype(q.dtype), block)
    return *(g.astype(out.dtype) for g in (dq * scale, dk, dv)), None


def _forward_unrolled(q: Array, k: Array, v: Array, segments: Array,
                      block: int) -> tuple[Array, Array]:
    """Output [B, H, T, U] and the softmax's log denominators [B, H, T], by blocks of queries."""
    length = q.shape[2]
    outs, logs = [], []
    for start in range(0, length, block):
        end = min(start + block, length)
        s = contract(q[:, :, start:end], k[:, :, :end], 1, 1)
        mask = _visible(segments[:, start:end], segments[:, :end], start, 0)
        s = jnp.where(mask[:, None], s, NEVER)
        top = s.max(axis=-1, keepdims=True)
        p = jnp.exp(s - top)
        total = p.sum(axis=-1, keepdims=True)
        outs.append(contract(p.astype(v.dtype), v[:, :, :end], 1, 2) / total)
        logs.append((top + jnp.log(total))[..., 0])
    return jnp.concatenate(outs, axis=2), jnp.concatenate(logs, axis=2)


def _backward_unrolled(q: Array, k: Array, v: Array, segments: Array, log_total: Array,
                       inner: Array, d_out: Array, block: int) -> tuple[Array, Array, Array]:
    """Gradients of scaled queries, keys and values, by blocks of keys.

    Scores are made transposed, [s, t], so that every product reads its operands row by row: a
    block of keys then needs no other block, and queries gather their gradient as [N, T].
    """
    length = q.shape[2]
    k_columns = row_major(k.swapaxes(2, 3))
    dq, dk, dv = jnp.zeros(k_columns.shape, log_total.dtype), [], []
    for start in range(0, length, block):
        keys, queries = slice(start, min(start + block, length)), slice(start, None)
        mask = _visible(segments[:, queries], segments[:, keys], start, start)
        ds, p = _score_gradient(
            k[:, :, keys], q[:, :, queries], v[:, :, keys], d_out[:, :, queries],
            log_total[:, :, None, queries], inner[:, :, None, queries], mask.swapaxes(1, 2))
        dk.append(contract(ds, q[:, :, queries], 1, 2))
        dv.append(contract(p, d_out[:, :, queries], 1, 2))
        dq = dq.at[..., queries].add(contract(k_columns[..., keys], ds, 1, 2))
    return dq.swapaxes(2, 3), jnp.concatenate(dk, axis=2), jnp.concatenate(dv, axis=2)


def _score_gradient(k: Array, q: Array, v: Array, d_out: Array, log_total: Array, inner: Array,
                    mask: Array) -> tuple[Array, Array]:
    """The gradient of one block's scores and its probabilities, [B, H, s, t], as operands."""
    s = contract(k, q, 1, 1)
    p = jnp.where(mask[:, None], jnp.exp(s - log_total), 0.0)
    dp = contract(v, d_out, 1, 1)
    return (p * (dp - inner)).astype(k.dtype), p.astype(k.dtype)


def _forward_scanned(q: Array, k: Array, v: Array, segments: Array,
                     block: int) -> tuple[Array, Array]:
    """Long T: as `_forward_unrolled`, by blocks of keys too, with a running maximum."""
    b, h, length, _ = q.shape
    dtype = wide(q.dtype)
    at = functools.partial(lax.dynamic_slice_in_dim, slice_size=block)

    def one_query_block(i: Array) -> tuple[Array, Array]:
        start = i * block
        q_i, seg_i = at(q, start, axis=2), at(segments, start, axis=1)

        def add_key_block(j: Array, state):
            top, total, out = state
            seg_j = at(segments, j * block, axis=1)
            s = contract(q_i, at(k, j * block, axis=2), 1, 1)
            s = jnp.where(_visible(seg_i, seg_j, start, j * block)[:, None], s, NEVER)
            new_top = jnp.maximum(top, s.max(axis=-1))
            p = jnp.exp(s - new_top[..., None])
            shrink = jnp.exp(top - new_top)
            part = contract(p.astype(v.dtype), at(v, j * block, axis=2), 1, 2)
            return new_top, total * shrink + p.sum(-1), out * shrink[..., None] + part

        row, out = q_i[..., 0], at(v, start, axis=2)  # in a shard_map, carries vary as these do
        first = (jnp.full_like(row, NEVER, dtype), jnp.zeros_like(row, dtype),
                 jnp.zeros_like(out, dtype))
        top, total, out = lax.fori_loop(0, i + 1, add_key_block, first)
        return out / total[..., None], top + jnp.log(total)

    outs, logs = lax.map(one_query_block, jnp.arange(length // block))
    return _join(outs), jnp.moveaxis(logs, 0, 2).reshape(b, h, length)


def _join(blocks: Array) -> Array:
    """[blocks, B, H, t, U] -> [B, H, T, U]."""
    n, b, h, t, u = blocks.shape
    return jnp.moveaxis(blocks, 0, 2).reshape(b, h, n * t, u)


def _backward_scanned(q: Array, k: Array, v: Array, segments: Array, log_total: Array,
                      inner: Array, d_out: Array, block: int) -> tuple[Array, Array, Array]:
    """Long T: as `_backward_unrolled`, by blocks of queries too; the carry gathers dq as [N, T]."""
    count, dtype = q.shape[2] // block, wide(q.dtype)
    at = functools.partial(lax.dynamic_slice_in_dim, slice_size=block)

    def one_key_block(dq: Array, j: Array):
        k_j, v_j = at(k, j * block, axis=2), at(v, j * block, axis=2)
        seg_j, k_columns = at(segments, j * block, axis=1), row_major(k_j.swapaxes(2, 3))

        def add_query_block(i: Array, state):
            dq, dk, dv = state
            start = i * block
            q_i, d_i = at(q, start, axis=2), at(d_out, start, axis=2)
            mask = _visible(at(segments, start, axis=1), seg_j, start, j * block)
            ds, p = _score_gradient(
                k_j, q_i, v_j, d_i, at(log_total, start, axis=2)[:, :, None],
                at(inner, start, axis=2)[:, :, None], mask.swapaxes(1, 2))
            dq_i = at(dq, start, axis=3) + contract(k_columns, ds, 1, 2)
            dq = lax.dynamic_update_slice_in_dim(dq, dq_i, start, 3)
            return dq, dk + contract(ds, q_i, 1, 2), dv + contract(p, d_i, 1, 2)

        dk, dv = jnp.zeros_like(k_j, dtype), jnp.zeros_like(v_j, dtype)
        dq, dk, dv = lax.fori_loop(j, count, add_query_block, (dq, dk, dv))
        return dq, (dk, dv)

    dq, (dk, dv) = lax.scan(one_key_block, jnp.zeros_like(q.swapaxes(2, 3), dtype),
                            jnp.arange(count))
    return dq.swapaxes(2, 3), _join(dk), _join(dv)


_attend.defvjp(_attend_forward, _attend_backward)
