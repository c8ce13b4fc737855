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
    scan_body = functools.partial(_chunk_loss, head.astype(dtype))
    _, (nats, hits) = lax.scan(scan_body, None, _chunks(x.astype(dtype), targets, weights, chunk))
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


def _logits(x: Array, head: Array) -> Array:
    flat = lax.dot(x.reshape(-1, x.shape[-1]), head, preferred_element_type=wide(x.dtype))
    return flat.reshape(*x.shape[:-1], -1)


def _chunk_loss(head: Array, carry: None, inputs: tuple[Array, Array, Array]):
    x, targets, weights = inputs
    logits = _logits(x, head)
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    nats = ((jax.nn.logsumexp(logits, axis=-1) - chosen) * weights).sum()
    return carry, (nats, jnp.where(chosen >= logits.max(axis=-1), weights, 0).sum())


def _forward(x: Array, head: Array, targets: Array, weights: Array, chunk: int, dtype: jnp.dtype):
    held = head.astype(dtype)
    vocab = jnp.arange(head.shape[1], dtype=targets.dtype)[None, None]

    def body(d_head: Array, inputs: tuple[Array, Array, Array]):
        x_c, targets_c, weights_c = inputs
        logits = _logits(x_c, held)
        top = logits.max(axis=-1)
        p = jnp.exp(logits - top[..., None])
        total = p.sum(axis=-1)
        is_target = vocab == targets_c[..., None]
        chosen = jnp.where(is_target, logits, 0.0).sum(axis=-1)
        nats = ((top + jnp.log(total) - chosen) * weights_c).sum()
        d_logits = (p * (weights_c / total)[..., None]
                    - jnp.where(is_target, weights_c[..., None], 0.0)).astype(dtype)
        rows = d_logits.reshape(-1, d_logits.shape[-1])
        dx = lax.dot_general(rows, held, (((1,), (1,)), ((), ())),
                             preferred_element_type=wide(dtype))
        d_head += lax.dot_general(x_c.reshape(rows.shape[0], -1), rows, (((0,), (0,)), ((), ())),
                                  preferred_element_type=wide(dtype))
        return d_head, (nats, jnp.where(chosen >= top, weights_c, 0).sum(), dx.reshape(x_c.shape))

    start = jnp.zeros(head.shape, wide(dtype))
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
