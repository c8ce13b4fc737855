"""Helpers for the varying axes (vma) of arrays inside a shard_map: part of an array's type."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import jax
from jax import Array, lax


def varies(a: Any) -> frozenset[str]:
    """The axes of a manual mesh over which an array differs; none outside a shard_map."""
    kind = jax.typeof(a)
    return kind.vma if hasattr(kind, "vma") else kind.mat.varying


def vary(a: Array, axes: Iterable[str]) -> Array:
    """The same array, said to differ over these axes too."""
    missing = tuple(axis for axis in axes if axis not in varies(a))
    return lax.pcast(a, missing, to="varying") if missing else a
