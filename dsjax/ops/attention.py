"""Causal attention within segments, by blocks of queries: no T x T array for long T.

The forward pass keeps the output and the log of each softmax's denominator; the backward pass
makes the probabilities again block by block (Dao et al., arXiv 2205.14135). Softmax is float32.
A query looks at keys of its own segment at or before it; segment 0 is padding, which looks only
at itself so that no row is empty.

Axes: B batch, H heads, T query time, S key time, N channels of a score, U channels of a value.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.ad_checkpoint import checkpoint_name

from dsjax.numerics.wide import wide

UNROLLED_BLOCKS = 8  # up to this many blocks are written out, each with just the keys it may see
NEVER = -1e30  # a score that no softmax notices; finite, so that a masked block gives no NaN


def attend_plain(q: Array, k: Array, v: Array, segments: Array, scale: float) -> Array:
    """The clear twin: the whole [T, S] score matrix at once.

    q [B, H, T, N], k [B, H, S, N], v [B, H, S, U], segments [B, T]. Returns [B, H, T, U].
    """
    scores = jnp.einsum("bhtn,bhsn->bhts", q, k,
                        preferred_element_type=wide(q.dtype)) * scale
    scores = jnp.where(_visible(segments, segments, 0, 0)[:, None], scores, NEVER)
    weights = jax.nn.softmax(scores, axis=-1)
    return jnp.einsum("bhts,bhsu->bhtu", weights.astype(v.dtype), v)


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
    return _forward(q, k, v, segments, scale, block, is_low)[0]


def _starts(length: int, block: int) -> list[int]:
    return list(range(0, length, block))


def _mm(equation: str, a: Array, b: Array, is_low: bool) -> Array:
    if is_low:
        a, b = a.astype(jnp.bfloat16), b.astype(jnp.bfloat16)
    return jnp.einsum(equation, a, b, preferred_element_type=wide(a.dtype))


def _forward(q: Array, k: Array, v: Array, segments: Array, scale: float, block: int,
             is_low: bool) -> tuple[Array, Array]:
    """Returns the output [B, H, T, U] and the softmax's log denominators [B, H, T]."""
    length = q.shape[2]
    if length > UNROLLED_BLOCKS * block:
        return _forward_scanned(q, k, v, segments, scale, block, is_low)
    outs, logs = [], []
    for start in _starts(length, block):
        end = min(start + block, length)
        s = _mm("bhtn,bhsn->bhts", q[:, :, start:end], k[:, :, :end], is_low) * scale
        mask = _visible(segments[:, start:end], segments[:, :end], start, 0)
        s = jnp.where(mask[:, None], s, NEVER)
        top = s.max(axis=-1, keepdims=True)
        p = jnp.exp(s - top)
        total = p.sum(axis=-1, keepdims=True)
        outs.append(_mm("bhts,bhsu->bhtu", p, v[:, :, :end], is_low) / total)
        logs.append((top + jnp.log(total))[..., 0])
    return jnp.concatenate(outs, axis=2).astype(v.dtype), jnp.concatenate(logs, axis=2)


def _attend_forward(q: Array, k: Array, v: Array, segments: Array, scale: float, block: int,
                    is_low: bool):
    out, log_total = _forward(q, k, v, segments, scale, block, is_low)
    out = checkpoint_name(out, "attention")
    log_total = checkpoint_name(log_total, "attention")
    return out, (q, k, v, segments, out, log_total)


def _attend_backward(scale: float, block: int, is_low: bool, kept, d_out: Array):
    q, k, v, segments, out, log_total = kept
    length = q.shape[2]
    dtype = wide(q.dtype)
    inner = (d_out.astype(dtype) * out.astype(dtype)).sum(-1)
    if length > UNROLLED_BLOCKS * block:
        grads = _backward_scanned(q, k, v, segments, log_total, inner, d_out, scale, block, is_low)
        return *grads, None
    dq, dk, dv = [], jnp.zeros(k.shape, dtype), jnp.zeros(v.shape, dtype)
    for start in _starts(length, block):
        end = min(start + block, length)
        rows = slice(start, end)
        ds, p = _score_gradient(
            q[:, :, rows], k[:, :, :end], v[:, :, :end], d_out[:, :, rows], log_total[:, :, rows],
            inner[:, :, rows], _visible(segments[:, rows], segments[:, :end], start, 0), scale,
            is_low)
        dq.append(_mm("bhts,bhsn->bhtn", ds, k[:, :, :end], is_low))
        dk = dk.at[:, :, :end].add(_mm("bhts,bhtn->bhsn", ds, q[:, :, rows], is_low))
        dv = dv.at[:, :, :end].add(_mm("bhts,bhtu->bhsu", p, d_out[:, :, rows], is_low))
    return (jnp.concatenate(dq, axis=2).astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype),
            None)


def _score_gradient(q, k, v, d_out, log_total, inner, mask, scale, is_low):
    """The gradient of raw scores and the probabilities of one block, [B, H, t, s] each."""
    s = _mm("bhtn,bhsn->bhts", q, k, is_low) * scale
    p = jnp.where(mask[:, None], jnp.exp(s - log_total[..., None]), 0.0)
    dp = _mm("bhtu,bhsu->bhts", d_out, v, is_low)
    return p * (dp - inner[..., None]) * scale, p


def _forward_scanned(q, k, v, segments, scale, block, is_low):
    """Long T: scan over query blocks, and over each one's key blocks with a running maximum."""
    b, h, length, _ = q.shape
    dtype = wide(q.dtype)

    def one_query_block(i: Array) -> tuple[Array, Array]:
        start = i * block
        q_i = lax.dynamic_slice_in_dim(q, start, block, 2)
        seg_i = lax.dynamic_slice_in_dim(segments, start, block, 1)

        def add_key_block(j: Array, state):
            top, total, out = state
            k_j = lax.dynamic_slice_in_dim(k, j * block, block, 2)
            v_j = lax.dynamic_slice_in_dim(v, j * block, block, 2)
            seg_j = lax.dynamic_slice_in_dim(segments, j * block, block, 1)
            s = _mm("bhtn,bhsn->bhts", q_i, k_j, is_low) * scale
            s = jnp.where(_visible(seg_i, seg_j, start, j * block)[:, None], s, NEVER)
            new_top = jnp.maximum(top, s.max(axis=-1))
            p = jnp.exp(s - new_top[..., None])
            shrink = jnp.exp(top - new_top)
            out = out * shrink[..., None] + _mm("bhts,bhsu->bhtu", p, v_j, is_low)
            return new_top, total * shrink + p.sum(-1), out

        top = jnp.full((b, h, block), NEVER, dtype)
        zero = jnp.zeros((b, h, block), dtype)
        out = jnp.zeros((b, h, block, v.shape[-1]), dtype)
        top, total, out = lax.fori_loop(0, i + 1, add_key_block, (top, zero, out))
        return (out / total[..., None]).astype(v.dtype), top + jnp.log(total)

    outs, logs = lax.map(one_query_block, jnp.arange(length // block))
    return _join(outs), jnp.moveaxis(logs, 0, 2).reshape(b, h, length)


def _join(blocks: Array) -> Array:
    """[blocks, B, H, t, U] -> [B, H, T, U]."""
    n, b, h, t, u = blocks.shape
    return jnp.moveaxis(blocks, 0, 2).reshape(b, h, n * t, u)


def _backward_scanned(q, k, v, segments, log_total, inner, d_out, scale, block, is_low):
    """Long T: scan over query blocks; key and value gradients accumulate in the carry."""
    count, dtype = q.shape[2] // block, wide(q.dtype)

    def one_query_block(carry, i):
        cut = functools.partial(lax.dynamic_slice_in_dim, start_index=i * block, slice_size=block)
        q_i, d_i = cut(q, axis=2), cut(d_out, axis=2)
        log_i, inner_i, seg_i = cut(log_total, axis=2), cut(inner, axis=2), cut(segments, axis=1)

        def one_key_block(j, state):
            dq_i, dk, dv = state
            at = functools.partial(lax.dynamic_slice_in_dim, start_index=j * block,
                                   slice_size=block)
            k_j, v_j, seg_j = at(k, axis=2), at(v, axis=2), at(segments, axis=1)
            mask = _visible(seg_i, seg_j, i * block, j * block)
            ds, p = _score_gradient(q_i, k_j, v_j, d_i, log_i, inner_i, mask, scale, is_low)
            dk_j = at(dk, axis=2) + _mm("bhts,bhtn->bhsn", ds, q_i, is_low)
            dv_j = at(dv, axis=2) + _mm("bhts,bhtu->bhsu", p, d_i, is_low)
            dk = lax.dynamic_update_slice_in_dim(dk, dk_j, j * block, 2)
            dv = lax.dynamic_update_slice_in_dim(dv, dv_j, j * block, 2)
            return dq_i + _mm("bhts,bhsn->bhtn", ds, k_j, is_low), dk, dv

        zero = jnp.zeros(q_i.shape, dtype)
        dq_i, dk, dv = lax.fori_loop(0, i + 1, one_key_block, (zero, *carry))
        return (dk, dv), dq_i

    start = (jnp.zeros(k.shape, dtype), jnp.zeros(v.shape, dtype))
    (dk, dv), dq = lax.scan(one_query_block, start, jnp.arange(count))
    return _join(dq).astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype)


_attend.defvjp(_attend_forward, _attend_backward)
