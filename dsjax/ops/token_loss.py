"""Log-probabilities of tokens and losses of them, in chunks: no [B, T, V] logits at once.

A loss of tokens is any function that gives every position a loss from the log-probability of its
target: cross-entropy for pre-training and fine-tuning, a clipped ratio for reinforcement learning.
Its slope with respect to a log-probability is all that the gradient of the logits needs,

    d loss / d logits = slope * (one_hot(target) - softmax(logits)),

so each chunk makes its logits once and, when a gradient is asked for, uses them there and then.
Nothing of size V is kept but the head's own gradient.

Axes: B batch, T time, D model, V vocabulary.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array, lax

from dsjax.numerics.precision import contract
from dsjax.numerics.wide import exact, wide


@struct.dataclass
class Targets:
    """The token to predict at each position, and what its loss reads."""

    ids: Array  # [B, T] int32
    weights: Array  # [B, T], 0 where there is nothing to predict
    extra: dict[str, Array] = struct.field(default_factory=dict)  # [B, T] each, by name


TokenLoss = Callable[[Array, Targets], Array]
"""Log-probabilities of targets and the targets, all of one shape -> the loss of each position.

A position's loss reads that position alone, and is 0 where its weight is 0.
"""


def cross_entropy(logprobs: Array, targets: Targets) -> Array:
    """Weighted negative log-likelihood, in nats."""
    return -logprobs * targets.weights


@struct.dataclass
class Sums:
    """Sums over positions."""

    loss: Array  # [] of the token loss; the one sum with a gradient
    nll: Array  # [] weighted negative log-likelihood
    correct: Array  # [] weights of positions whose likeliest token is the target


def logprobs_plain(x: Array, head: Array, ids: Array) -> Array:
    """Log-probability of each position's target, all logits at once; the reference of this file.

    x [B, T, D], head [D, V], ids [B, T] int32 -> [B, T].
    """
    logits = jnp.einsum("btd,dv->btv", x, head, precision=exact(x.dtype),
                        preferred_element_type=wide(x.dtype))
    chosen = jnp.take_along_axis(logits, ids[..., None], axis=-1)[..., 0]
    return chosen - jax.nn.logsumexp(logits, axis=-1)


def logprobs(x: Array, head: Array, ids: Array, chunk: int,
             dtype: jnp.dtype) -> tuple[Array, Array]:
    """Log-probability of each target, and the likeliest token, [B, T] each.

    As `logprobs_plain`, over chunks of `chunk` positions of every row; products read operands of
    `dtype` and sum in float32. A gradient makes the logits again. With `ids` [B, T, R], rivals for
    the same place, so are the log-probabilities.
    """
    head = head.astype(dtype)

    @jax.checkpoint
    def one(part: tuple[Array, Array]) -> tuple[Array, Array]:
        x, ids = part
        logits = contract(x.reshape(-1, x.shape[-1]), head, 1, 2)
        found, _, _ = _of_rivals(logits, ids.reshape(logits.shape[0], -1))
        likeliest = jnp.argmax(logits, -1).astype(ids.dtype)
        return found.reshape(ids.shape), likeliest.reshape(ids.shape[:2])

    found, likeliest = lax.map(one, _chunks((x.astype(dtype), ids), chunk))
    return _joined(found, x.shape[1]), _joined(likeliest, x.shape[1])


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def summed_loss(x: Array, head: Array, targets: Targets, token_loss: TokenLoss, chunk: int,
                dtype: jnp.dtype) -> Sums:
    """Sum a token loss over all positions; chunks and dtypes as in `logprobs`."""
    body = functools.partial(_chunk_sums, head.astype(dtype), token_loss)
    _, sums = lax.scan(body, None, _chunks((x.astype(dtype), targets), chunk))
    return _total(sums)


def _chunk_sums(head: Array, token_loss: TokenLoss, carry: None,
                chunk: tuple[Array, Targets]) -> tuple[None, Sums]:
    x, targets = _rows(chunk)
    found, _, is_correct = _logprobs(contract(x, head, 1, 2), targets.ids)
    return carry, _sums(token_loss(found, targets), found, is_correct, targets)


def _forward(x: Array, head: Array, targets: Targets, token_loss: TokenLoss, chunk: int,
             dtype: jnp.dtype) -> tuple[Sums, tuple[Array, Array]]:
    low = head.astype(dtype)
    vocab = jnp.arange(head.shape[1], dtype=targets.ids.dtype)[None]

    def body(d_head: Array, part: tuple[Array, Targets]) -> tuple[Array, tuple[Sums, Array]]:
        rows, at = _rows(part)
        found, (exps, total), is_correct = _logprobs(contract(rows, low, 1, 2), at.ids)

        def summed(logprobs: Array) -> tuple[Array, Array]:
            each = token_loss(logprobs, at)
            return each.sum(), each

        slope, each = jax.grad(summed, has_aux=True)(found)
        descent = -slope[:, None]
        is_target = vocab == at.ids[:, None]
        d_logits = exps * (descent / total) - jnp.where(is_target, descent, 0.0)
        d_logits = d_logits.astype(dtype)
        dx = contract(d_logits, low, 1, 1).reshape(part[0].shape)
        return d_head + contract(rows, d_logits, 2, 2), (_sums(each, found, is_correct, at), dx)

    start = jnp.zeros_like(head, dtype=wide(dtype))
    d_head, (sums, dx) = lax.scan(body, start, _chunks((x.astype(dtype), targets), chunk))
    return _total(sums), (_joined(dx, x.shape[1]).astype(x.dtype), d_head)


def _backward(token_loss: TokenLoss, chunk: int, dtype: jnp.dtype, kept: tuple[Array, Array],
              cotangent: Sums) -> tuple[Array, Array, None]:
    """The loss is a sum, so what the forward pass made is scaled."""
    dx, d_head = kept
    return dx * cotangent.loss.astype(dx.dtype), d_head * cotangent.loss, None


summed_loss.defvjp(_forward, _backward)


def _logprobs(logits: Array, ids: Array) -> tuple[Array, tuple[Array, Array], Array]:
    """As `_of_rivals` for the one target of each row. logits [N, V], ids [N]."""
    found, shifted, is_likeliest = _of_rivals(logits, ids[:, None])
    return found[:, 0], shifted, is_likeliest[:, 0]


def _of_rivals(logits: Array, ids: Array) -> tuple[Array, tuple[Array, Array], Array]:
    """Log-probability of each row's targets, shifted exponentials with their sum, and whether a
    target is the likeliest token. logits [N, V], ids [N, R] -> [N, R].
    """
    top = logits.max(axis=-1, keepdims=True)
    exps = jnp.exp(logits - top)
    total = exps.sum(axis=-1, keepdims=True)
    chosen = jnp.take_along_axis(logits, ids, axis=-1)
    found = chosen - (top + jnp.log(total))
    return found, (exps, total), chosen >= top


def _sums(loss: Array, logprobs: Array, is_correct: Array, targets: Targets) -> Sums:
    """Sum over the rows of a chunk."""
    return Sums(loss.sum(), cross_entropy(logprobs, targets).sum(),
                jnp.where(is_correct, targets.weights, 0).sum())


def _total(sums: Sums) -> Sums:
    return jax.tree.map(jnp.sum, sums)


def _chunks(tree: Any, chunk: int) -> Any:
    """Cut time into chunks, padding the last with zeros: [B, T, ...] -> [chunks, B, t, ...]."""

    def cut(a: Array) -> Array:
        size = min(chunk, a.shape[1])
        a = jnp.pad(a, [(0, 0), (0, -a.shape[1] % size)] + [(0, 0)] * (a.ndim - 2))
        return jnp.moveaxis(a.reshape(a.shape[0], -1, size, *a.shape[2:]), 1, 0)

    return jax.tree.map(cut, tree)


def _joined(chunks: Array, length: int) -> Array:
    """[chunks, B, t, ...] -> [B, length, ...]."""
    a = jnp.moveaxis(chunks, 0, 1)
    return a.reshape(a.shape[0], -1, *a.shape[3:])[:, :length]


def _rows(chunk: tuple[Array, Targets]) -> tuple[Array, Targets]:
    """One chunk's positions as rows: [B, t, D] and [B, t] -> [B*t, D] and [B*t]."""
    x, targets = chunk
    return x.reshape(-1, x.shape[-1]), jax.tree.map(jnp.ravel, targets)
