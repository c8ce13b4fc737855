"""Matrices of which a part learns: a frozen one with a low-rank adapter, or with some new experts.

    LowRank    W + scale A B                 (LoRA, arXiv 2106.09685)
    Replaced   W[e], or w[place[e]] where the expert e learns   (ESFT, arXiv 2407.01906)

They stand in the parameters where a matrix would. A product with a `LowRank` is two: of the frozen
matrix, which has no gradient, and of the adapter, at the precision of what stays out of 8 bits.
Experts are made whole, a layer at a time, as their products are batched.

Axes: E experts, K summed channels, N columns, r rank.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import struct
from jax import Array
from jax.typing import DTypeLike

from dsjax.numerics.precision import Matrix, decoded
from dsjax.numerics.scaled import Scaled
from dsjax.numerics.wide import exact


@struct.dataclass
class LowRank:
    """W + scale A B, W frozen."""

    base: Array | Scaled  # [..., K, N]
    a: Array  # [..., K, r]
    b: Array  # [..., r, N]
    scale: float = struct.field(pytree_node=False)


@struct.dataclass
class Replaced:
    """Experts of which some learn, the others frozen."""

    base: Array | Scaled  # [E, K, N]
    w: Array  # [n, K, N]
    place: Array  # [E] int32: where in `w` an expert is, -1 where it is frozen


def whole(w: Matrix | LowRank | Replaced, dtype: DTypeLike) -> Matrix:
    """Experts' matrices as products read them: adapted ones as one array of a dtype.

    The gradient goes to the adapter, or to the experts that learn, and to nothing else.
    """
    if isinstance(w, LowRank):
        lead = w.a.ndim - 2
        columns = w.b.reshape(*w.b.shape[: lead + 1], -1)
        added = w.scale * jnp.matmul(w.a, columns, precision=exact(w.a.dtype))
        added = added.reshape(*w.a.shape[:-1], *w.b.shape[lead + 1 :])
        return _plain(w.base, added.shape, dtype) + added.astype(dtype)
    if isinstance(w, Replaced):
        shape = (w.place.shape[0], *w.w.shape[1:])
        learns = w.w.at[jnp.maximum(w.place, 0)].get(mode="clip").astype(dtype)
        is_learning = (w.place >= 0).reshape(-1, *(1 for _ in shape[1:]))
        return jnp.where(is_learning, learns, _plain(w.base, shape, dtype))
    return w


def _plain(base: Array | Scaled, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
    """Frozen matrices in a dtype."""
    held: Any = decoded(base, dtype) if isinstance(base, Scaled) else base.astype(dtype)
    return held.reshape(shape)
