"""One tree of `Spec` leaves describes a model; values, shapes, masks and counts are read from it.

A parameter class (`flax.struct.dataclass`) is a tree of arrays; the same class also holds the
description of itself, with a `Spec` where an array will be. Never restate a shape elsewhere.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import zlib
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

CHUNK = 1 << 14
"""Numbers drawn from one key."""

Tree = Any  # a tree of parameter classes; leaves are Spec, Array or jax.ShapeDtypeStruct by context
Start = Literal["normal", "ones", "zeros"]
Role = Literal["", "embedding", "head", "norm", "attention", "ffn", "expert", "shared_expert",
               "router", "router_bias", "mtp_proj"]
"""Purpose of a parameter, so that nobody reads it from its name; "" until it is said."""


@dataclasses.dataclass(frozen=True)
class Spec:
    """One parameter before it exists: shape, logical axis of each dim, start value, role.

    `is_product` marks the matrices of a Linear, which may be quantized (V3 report sec. 3.3.1
    keeps embedding, head, router and norms high).
    """

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    init: Start = "normal"
    is_product: bool = False
    is_trainable: bool = True
    batch_dims: int = 0  # leading dims that only stack equal things (layers, experts)
    contract_dims: int = 1  # dims after those that a product sums over
    parts: int = 1  # matrices side by side in the columns; no 128x128 scale spans two
    role: Role = ""

    def __post_init__(self) -> None:
        """Every dim has an axis name or None."""
        assert len(self.shape) == len(self.axes), f"{self.shape} and {self.axes} differ in length"

    @property
    def is_decayed(self) -> bool:
        """True if weight decay applies: to matrices, not gains and biases."""
        return len(self.shape) - self.batch_dims >= 2


def spec(shape: tuple[int, ...], axes: tuple[str | None, ...], init: Start = "normal", *,
         is_product: bool = False, is_trainable: bool = True, contract_dims: int = 1,
         parts: int = 1, role: Role = "") -> Any:
    """A Spec for a field of a parameter class: a description stands where an array will be."""
    return Spec(shape, axes, init, is_product, is_trainable, contract_dims=contract_dims,
                parts=parts, role=role)


def is_spec(leaf: Any) -> bool:
    """Return True if a tree leaf is a Spec."""
    return isinstance(leaf, Spec)


def map_specs(f: Callable[[Spec], Any], specs: Tree) -> Tree:
    """Apply `f` to every Spec of a tree."""
    return jax.tree.map(f, specs, is_leaf=is_spec)


def leaves(specs: Tree) -> list[Spec]:
    """List the Specs of a tree, in order."""
    return jax.tree.leaves(specs, is_leaf=is_spec)


def with_role(specs: Tree, role: Role) -> Tree:
    """The same parameters, all of one role."""
    return map_specs(lambda s: dataclasses.replace(s, role=role), specs)


def stack(specs: Tree, count: int, axis: str = "layer") -> Tree:
    """Describe `count` equal things stacked along a new leading dim."""
    return map_specs(
        lambda s: dataclasses.replace(
            s,
            shape=(count, *s.shape),
            axes=(axis, *s.axes),
            batch_dims=s.batch_dims + 1,
        ),
        specs,
    )


def paths(tree: Tree) -> list[tuple[str, Any]]:
    """List the leaves with their dotted names, in tree order."""
    flat, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_spec)
    return [(jax.tree_util.keystr(path, simple=True, separator="."), leaf) for path, leaf in flat]


def key_of(seed: int) -> Array:
    """The random key of a seed from 0 to 2^63 - 1: `jax.random.key`, which reads 32 bits, and no
    seed like another where there are more."""
    key = jax.random.key(seed % 2**32)
    return jax.random.fold_in(key, seed >> 32) if seed >> 32 else key


def init(specs: Tree, key: Array, std: float, dtype: jnp.dtype = jnp.float32) -> Tree:
    """Draw start values; each leaf's keys come from its name, so adding a leaf moves no other.

    Matrices are normal with standard deviation `std` (V3 report sec. 4.2); norms start at one. All
    numbers come in chunks from one compiled draw: a program with one draw a leaf compiles slowly.
    """
    named = paths(specs)
    drawn = [(name, spec) for name, spec in named if spec.init == "normal"]
    counts = [-(-math.prod(spec.shape) // CHUNK) for _, spec in drawn]
    leaf_keys = [jax.random.fold_in(key, zlib.crc32(name.encode())) for name, _ in drawn]
    fold = jax.vmap(jax.random.fold_in, in_axes=(None, 0))
    chunk_keys = [fold(k, jnp.arange(n)) for k, n in zip(leaf_keys, counts, strict=True)]
    values = {}
    if drawn:
        draw = functools.partial(jax.random.normal, shape=(CHUNK,), dtype=dtype)
        rows = jax.lax.map(draw, jnp.concatenate(chunk_keys))
        ends = np.cumsum(counts)
        for (name, spec), end, count in zip(drawn, ends, counts, strict=True):
            numbers = rows[end - count : end].reshape(-1)[: math.prod(spec.shape)]
            values[name] = std * numbers.reshape(spec.shape)
    drawn_leaves = [
        values[name] if spec.init == "normal" else jnp.full(spec.shape, spec.init == "ones", dtype)
        for name, spec in named
    ]
    return jax.tree.unflatten(jax.tree.structure(specs, is_leaf=is_spec), drawn_leaves)


def abstract(specs: Tree, dtype: jnp.dtype = jnp.float32) -> Tree:
    """Shapes and dtypes without values, as `jax.eval_shape` would give them."""
    return map_specs(lambda s: jax.ShapeDtypeStruct(s.shape, dtype), specs)


def size(specs: Tree) -> int:
    """Count the numbers in a tree of Specs, before one is allocated."""
    return sum(math.prod(s.shape) for s in leaves(specs))


def decay_mask(specs: Tree) -> Tree:
    """True where weight decay applies."""
    return map_specs(lambda s: s.is_decayed and s.is_trainable, specs)


def trainable_mask(specs: Tree) -> Tree:
    """True where the optimizer may change a leaf; the router's bias follows its own rule."""
    return map_specs(lambda s: s.is_trainable, specs)
