"""AdamW with clipping by the global norm (V3 report section 4.2: betas 0.9 and 0.95, decay 0.1)."""

import math
from dataclasses import dataclass

import numpy as np

from .trees import Tree, leaves, tree_map, zeros_like


@dataclass(frozen=True)
class AdamWState:
    count: int
    first: Tree
    second: Tree


def adamw_init(params: Tree) -> AdamWState:
    return AdamWState(0, zeros_like(params), zeros_like(params))


def global_norm(tree: Tree) -> float:
    return math.sqrt(sum(float(np.sum(leaf * leaf)) for leaf in leaves(tree)))


def clipped(gradients: Tree, limit: float) -> Tree:
    """Scale all gradients by limit / norm if their global norm exceeds the limit."""
    norm = global_norm(gradients)
    factor = limit / norm if norm > limit else 1.0
    return tree_map(lambda g: g * factor, gradients)


def adamw_step(
    params: Tree,
    gradients: Tree,
    state: AdamWState,
    rate: float,
    beta1: float = 0.9,
    beta2: float = 0.95,
    eps: float = 1e-8,
    decay: float = 0.1,
    clip: float | None = 1.0,
) -> tuple[Tree, AdamWState]:
    """One step; decay is decoupled and acts on leaves with two or more axes (norms and biases
    have one, layers being unstacked here)."""
    if clip is not None:
        gradients = clipped(gradients, clip)
    count = state.count + 1
    first = tree_map(lambda m, g: beta1 * m + (1 - beta1) * g, state.first, gradients)
    second = tree_map(lambda v, g: beta2 * v + (1 - beta2) * g * g, state.second, gradients)

    def moved(p: np.ndarray, m: np.ndarray, v: np.ndarray) -> np.ndarray:
        step = (m / (1 - beta1**count)) / (np.sqrt(v / (1 - beta2**count)) + eps)
        if np.ndim(p) >= 2:
            step = step + decay * p
        return p - rate * step

    return tree_map(moved, params, first, second), AdamWState(count, first, second)
