"""Nested dicts and lists of arrays, and exact derivatives by the complex step.

f(p + i h d) = f(p) + i h f'(p)[d] + O(h^2) for analytic f; with h = 1e-30 the second-order term
is below the last bit, and no difference of near-equal numbers is ever taken.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

Tree = Any
STEP = 1e-30


def tree_map(function: Callable[..., Any], tree: Tree, *others: Tree) -> Tree:
    """Apply `function` to matching leaves; None stays None; structures must agree."""
    if tree is None:
        return None
    if isinstance(tree, dict):
        for other in others:
            if set(other) != set(tree):
                raise ValueError(f"keys differ: {sorted(tree)} and {sorted(other)}")
        return {key: tree_map(function, tree[key], *(o[key] for o in others)) for key in tree}
    if isinstance(tree, (list, tuple)):
        for other in others:
            if len(other) != len(tree):
                raise ValueError(f"lengths differ: {len(tree)} and {len(other)}")
        return [tree_map(function, *items) for items in zip(tree, *others)]
    return function(tree, *others)


def leaves(tree: Tree) -> list[np.ndarray]:
    """List the leaves, depth first, dict keys in sorted order, None left out."""
    if tree is None:
        return []
    if isinstance(tree, dict):
        return [leaf for key in sorted(tree) for leaf in leaves(tree[key])]
    if isinstance(tree, (list, tuple)):
        return [leaf for item in tree for leaf in leaves(item)]
    return [tree]


def as_float64(tree: Tree) -> Tree:
    """Convert every leaf (NumPy or JAX, any float type) to a float64 NumPy array."""
    return tree_map(lambda leaf: np.asarray(leaf, dtype=np.float64), tree)


def zeros_like(tree: Tree) -> Tree:
    return tree_map(lambda leaf: np.zeros(np.shape(leaf)), tree)


def random_direction(tree: Tree, rng: np.random.Generator) -> Tree:
    """Draw a standard normal tree of the same shapes."""
    return tree_map(lambda leaf: rng.standard_normal(np.shape(leaf)), tree)


def inner(a: Tree, b: Tree) -> float:
    """Sum of the products of all leaves: <gradient, direction>."""
    products = tree_map(lambda x, y: np.sum(np.asarray(x, np.float64) * y), a, b)
    return float(sum(leaves(products)))


def directional_gradient(f: Callable[[Tree], Any], params: Tree, direction: Tree) -> float:
    """Exact derivative of the scalar `f` at `params` along `direction`, by the complex step."""
    moved = tree_map(lambda p, d: p + 1j * STEP * np.asarray(d, np.float64), params, direction)
    return float(np.imag(f(moved)) / STEP)


def full_gradient(f: Callable[[Tree], Any], params: Tree) -> Tree:
    """Gradient of `f` with respect to every number of `params`, one complex step each."""
    moved = tree_map(lambda leaf: np.asarray(leaf, np.complex128).copy(), params)

    def one_leaf(leaf: np.ndarray) -> np.ndarray:
        gradient = np.zeros(leaf.shape)
        for index in np.ndindex(leaf.shape):
            before = leaf[index]
            leaf[index] = before + 1j * STEP
            gradient[index] = np.imag(f(moved)) / STEP
            leaf[index] = before
        return gradient

    return tree_map(one_leaf, moved)
