"""The vocabulary loss in chunks: [B, T, V] float32 logits never exist at once.

Each chunk of positions makes its logits once, and when a gradient is asked for uses them there
and then: the loss is a sum, so the gradients of hidden states and head need only be scaled by the
cotangent afterwards. Nothing of size V is kept but the head's own gradient.

Axes: B batch, T time, D model, V vocabulary.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import Array, lax

from dsjax.numerics.precision import contract
from dsjax.numerics.wide import wide


def cross_entropy_plain(x: Array, head: Array, targets: Array, weights: Array) -> Array:
    """The clear twin: weighted sum of -log softmax(x head)[target], in nats, float32 scalar.

    x [B, T, D], head [D, V], targets [B, T] int32, weights [B, T].
    """
    logits = jnp.einsum("btd,dv->btv", x, head, preferred_element_type=wide(x.dtype))
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return ((jax.nn.logsumexp(logits, axis=-1) - chosen) * weights).sum()


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def cross_entropy(x: Array, head: Array, targets: Array, weights: Array, chunk: int,
                  dtype: jnp.dtype) -> tuple[Array, Array]:
    """Weighted sum of nats and weighted count of positions whose likeliest token is the target.

    As `cross_entropy_plain`, over chunks of `chunk` positions of every row; products read operands
    of `dtype` and sum in float32.
    """
    body = functools.partial(_chunk_loss, head.astype(dtype))
    _, (nats, hits) = lax.scan(body, None, _chunks(x.astype(dtype), targets, weights, chunk))
    return nats.sum(), hits.sum()


def _chunks(x: Array, targets: Array, weights: Array, chunk: int) -> tuple[Array, Array, Array]:
    """Cut time into chunks, padding the last with weight 0: [chunks, B, chunk, ...]."""
    length = x.shape[1]
    chunk = min(chunk, length)
    pad = -length % chunk

    def cut(a: Array) -> Array:
        a = jnp.pad(a, [(0, 0), (0, pad)] + [(0, 0)] * (a.ndim - 2))
        return jnp.moveaxis(a.reshape(a.shape[0], -1, chunk, *a.shape[2:]), 1, 0)

    return cut(x), cut(targets), cut(weights)


def _rows(chunk: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
    """One chunk's positions as rows: [B, t, D], [B, t], [B, t] -> [B*t, D], [B*t], [B*t]."""
    x, targets, weights = chunk
    return x.reshape(-1, x.shape[-1]), targets.reshape(-1), weights.reshape(-1)


def _readings(logits: Array, targets: Array, weights: Array) -> tuple[Array, ...]:
    """Per row the shifted exponentials and their sum; over rows the nats and the hits."""
    top = logits.max(axis=-1, keepdims=True)
    exps = jnp.exp(logits - top)
    total = exps.sum(axis=-1, keepdims=True)
    chosen = jnp.take_along_axis(logits, targets[:, None], axis=-1)
    nats = ((top + jnp.log(total) - chosen)[:, 0] * weights).sum()
    return exps, total, nats, jnp.where(chosen[:, 0] >= top[:, 0], weights, 0).sum()


def _chunk_loss(head: Array, carry: None, chunk: tuple[Array, Array, Array]):
    x, targets, weights = _rows(chunk)
    return carry, _readings(contract(x, head, 1, 2), targets, weights)[2:]


def _forward(x: Array, head: Array, targets: Array, weights: Array, chunk: int, dtype: jnp.dtype):
    held = head.astype(dtype)
    vocab = jnp.arange(head.shape[1], dtype=targets.dtype)[None]

    def body(d_head: Array, part: tuple[Array, Array, Array]):
        rows, targets, weights = _rows(part)
        exps, total, nats, hits = _readings(contract(rows, held, 1, 2), targets, weights)
        is_target = vocab == targets[:, None]
        d_logits = exps * (weights[:, None] / total) - jnp.where(is_target, weights[:, None], 0.0)
        d_logits = d_logits.astype(dtype)
        dx = contract(d_logits, held, 1, 1).reshape(part[0].shape)
        return d_head + contract(rows, d_logits, 2, 2), (nats, hits, dx)

    start = jnp.zeros_like(head, dtype=wide(dtype))
    cuts = _chunks(x.astype(dtype), targets, weights, chunk)
    d_head, (nats, hits, dx) = lax.scan(body, start, cuts)
    dx = jnp.moveaxis(dx, 0, 1).reshape(x.shape[0], -1, x.shape[2])[:, : x.shape[1]]
    return (nats.sum(), hits.sum()), (dx.astype(x.dtype), d_head)


def _backward(chunk: int, dtype: jnp.dtype, kept: tuple[Array, Array],
              cotangent: tuple[Array, Array]):
    dx, d_head = kept
    scale = cotangent[0]
    return (dx * scale.astype(dx.dtype), d_head * scale, None, None)


cross_entropy.defvjp(_forward, _backward)
