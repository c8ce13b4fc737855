"""A cache in pages: rows share one pool, and a table says which pages are whose.

Position i of a row lies in page `table[row, i // size]` at `i % size`. Rows whose texts begin alike
can name the same page. A table's unused places name the pool's last page, the spare one, where
padding is written and nothing is read.

Axes: B rows, T new tokens, S positions, P pages of `size` positions (the spare one is the last).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array
from jax.typing import DTypeLike

from dsjax.config.model import ModelConfig
from dsjax.layers.cache import Cache
from dsjax.ops import attention_cached
from dsjax.ops.attention_cached import Past

BLOCK = 128  # positions of one step of attention's loop


@dataclass(frozen=True)
class Form:
    """Form in which pages hold what attention keeps: its own dtype, or fewer bits."""

    encode: Callable[[Any], Any]
    """A Kept as attention makes it -> a tree of arrays that lead with the same dims."""
    decode: Callable[[Any, DTypeLike], Any]
    """That tree -> a Kept in a dtype."""


def _cast(kept: Any, dtype: DTypeLike) -> Any:
    return jax.tree.map(lambda a: a.astype(dtype), kept)


AS_MADE = Form(lambda kept: kept, _cast)


@struct.dataclass
class Paged:
    """One layer's pages, and the table of the rows that are run."""

    pages: Any  # what the form makes of a Kept, leaves [P, size, ...]
    table: Array  # [B, pages a row] int32
    form: Form = struct.field(pytree_node=False, default=AS_MADE)

    @property
    def size(self) -> int:
        """Positions of a page."""
        return jax.tree.leaves(self.pages)[0].shape[1]

    def append(self, new: Any, positions: Array) -> Paged:
        """Write T tokens of each row at their positions [B, T]; those beyond the table are lost."""
        place = positions // self.size
        page = jnp.take_along_axis(self.table, place, axis=1, mode="clip")
        is_in = (positions >= 0) & (place < self.table.shape[1])
        page = jnp.where(is_in, page, jax.tree.leaves(self.pages)[0].shape[0] - 1)
        within = positions % self.size
        pages = jax.tree.map(lambda old, part: old.at[page, within].set(part.astype(old.dtype)),
                             self.pages, self.form.encode(new))
        return dataclasses.replace(self, pages=pages)

    def read(self, dtype: DTypeLike) -> Any:
        """Return what is kept of all positions of the table."""
        return self._gather(self.table, dtype)

    def block(self, j: Array, pages: int, dtype: DTypeLike) -> Any:
        """Return what is kept of block j of `pages` pages."""
        first = jax.lax.dynamic_slice_in_dim(self.table, j * pages, pages, axis=1)
        return self._gather(first, dtype)

    def _gather(self, table: Array, dtype: DTypeLike) -> Any:
        def of(a: Array) -> Array:
            rows = a.at[table].get(mode="promise_in_bounds")
            return rows.reshape(table.shape[0], -1, *a.shape[2:])

        return self.form.decode(jax.tree.map(of, self.pages), dtype)


def pool(kept: Any, pages: int, size: int, form: Form = AS_MADE) -> Any:
    """Make `pages` empty pages, and the spare one, of what attention keeps. kept [1, 1, ...]."""
    held = jax.eval_shape(form.encode, kept)
    return jax.tree.map(lambda a: jnp.zeros((pages + 1, size, *a.shape[2:]), a.dtype), held)


def route_pool(cfg: ModelConfig, pages: int, size: int) -> Array:
    """Make as many pages of experts that tokens took, [P, size, L, K], beside those of latents.

    They are found, copied and written again as those are.
    """
    assert cfg.moe is not None, "routes are of experts"
    dtype = jnp.uint8 if cfg.moe.experts <= 256 else jnp.uint16
    return jnp.zeros((pages + 1, size, cfg.moe_layers, cfg.moe.experts_per_token), dtype)


def bytes_per_token(pages: Any) -> float:
    """Bytes that a pool's arrays hold of one position."""
    leaves = jax.tree.leaves(pages)
    pages, size, *_ = leaves[0].shape
    return sum(a.size * a.dtype.itemsize for a in leaves) / (pages * size)


def attend(queries: tuple[Array, ...], cache: Cache, positions: Array, scale: float) -> Array:
    """Attend to pages where they lie, block by block: see `Backend.attend_cached`."""
    assert isinstance(cache, Paged), "this attention reads pages"
    pages = max(BLOCK // cache.size, 1)

    def past(j: Array) -> Past:
        kept = cache.block(j, pages, queries[0].dtype)
        return kept.keys, kept.values

    return attention_cached.attend_blocks(queries, past, positions, scale, pages * cache.size)


def table_width(max_len: int, size: int) -> int:
    """Pages of a row of `max_len` positions, in whole blocks of attention."""
    pages = max(BLOCK // size, 1)
    return -(-max_len // (pages * size)) * pages
