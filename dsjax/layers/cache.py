"""A layer's past behind two words: `append` new tokens, `read` them all.

Attention says what it keeps of a token (`mla.Latents`, `gqa.KeysValues`; an indexer's key would be
a field more) and how it reads that as keys and values. Where and in which dtype it lies is the
cache's: here every position of a row lies beside the next one. A paged or an 8-bit cache is another
class with these methods, handed in as `Backend.make_cache`; an attention that reads it where it
lies, instead of through `read`, is handed in as `Backend.attend_cached`.

Axes: B batch, T new tokens, S positions, Y key-value heads, N channels of a score, U of a value.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, Self

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array
from jax.typing import DTypeLike


class Kept(Protocol):
    """A tree of what attention keeps of tokens; leaves [B, T, ...]."""

    @property
    def keys(self) -> tuple[Array, ...]:
        """Parts [B, S, Y, N] of the keys; their scores add up."""
        ...

    @property
    def values(self) -> Array:
        """Values [B, S, Y, U]."""
        ...


class Cache(Protocol):
    """A tree of arrays that holds one layer's past."""

    def append(self, new: Kept, positions: Array) -> Self:
        """Write T tokens of each row at their positions [B, T]; those beyond the end are lost."""
        ...

    def read(self, dtype: DTypeLike) -> Any:
        """Return what is kept of every position from the first on, as a `Kept` in a dtype."""
        ...


MakeCache = Callable[[Any, int], Cache]
"""`Kept` of the first T tokens of rows (T may be 0), positions S -> a cache of S positions."""


@struct.dataclass
class Contiguous:
    """A cache in which a row's positions lie side by side, in the dtype of its first tokens."""

    kept: Any  # a Kept, leaves [B, S, ...]

    def append(self, new: Kept, positions: Array) -> Contiguous:
        """Write T tokens of each row at their positions [B, T]."""
        row = jnp.arange(positions.shape[0])[:, None]
        return Contiguous(jax.tree.map(
            lambda old, part: old.at[row, positions].set(part.astype(old.dtype)), self.kept, new))

    def read(self, dtype: DTypeLike) -> Any:
        """Return what is kept of all S positions."""
        return jax.tree.map(lambda a: a.astype(dtype), self.kept)


def contiguous(kept: Any, length: int) -> Contiguous:
    """Make a contiguous cache of `length` positions, the first of which hold `kept`."""

    def fit(a: Array) -> Array:
        a = a[:, :length]
        return jnp.pad(a, [(0, length - n if axis == 1 else 0) for axis, n in enumerate(a.shape)])

    return Contiguous(jax.tree.map(fit, kept))
