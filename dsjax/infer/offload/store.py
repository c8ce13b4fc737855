"""Routed experts where they lie when they are not on the device: files, or the host's memory.

A store hands out one expert at a time, as it lies in a leaf: [D, 2, F] and [F, D], or codes and
scales where it rests in FP8. A released folder's experts stay in its files and are read by plain
reads at their offsets; what the system keeps of the files in memory that nobody needs (its page
cache) makes a second read cheap, and is not the process's own. A run's experts are read once, as
its checkpoints may be replaced while it trains.

Axes: L layers of a stack, E experts, D model, F expert hidden.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from dsjax import params as trees
from dsjax.checkpoint.boxes import Index
from dsjax.checkpoint.reader import Leaf, Weights
from dsjax.config.model import ModelConfig
from dsjax.infer.offload.slots import Key
from dsjax.layers.swiglu import SwiGLUParams
from dsjax.model import transformer
from dsjax.numerics import scaled
from dsjax.numerics.scaled import Scaled
from dsjax.params import Spec, Tree

FIELDS = ("w_gate_up", "w_down")


class Store:
    """The experts of a checkpoint that stays open, by mixture layer and expert."""

    def __init__(self, weights: Weights) -> None:
        """Look up where each layer's experts are; nothing is read."""
        self._weights = weights
        cfg = weights.cfg
        assert cfg.moe is not None, "a store is of a mixture"
        self.layers = [(stack.name, at) for stack in cfg.stacks if stack.is_moe
                       for at in range(stack.count)]
        self.experts = cfg.moe.experts
        self._specs = dict(trees.paths(transformer.specs(cfg)))

    def read(self, key: Key) -> SwiGLUParams:
        """Return one expert's matrices, of NumPy arrays; several threads may read at once."""
        stack, at = self.layers[key[0]]
        gate_up, down = (self._matrix(name(stack, field), at, key[1]) for field in FIELDS)
        return SwiGLUParams(gate_up, down)

    def spec(self) -> SwiGLUParams:
        """Shapes and dtypes of one expert."""
        stack, _ = self.layers[0]

        def one(field: str) -> Any:
            leaf = name(stack, field)
            if leaf in self._weights.leaves:
                return self._one(leaf)
            return Scaled(self._one(f"{leaf}.codes"), self._one(f"{leaf}.scales"),
                          scaled.resting_shapes(self._specs[leaf])[2])

        return SwiGLUParams(*map(one, FIELDS))

    @property
    def expert_bytes(self) -> int:
        """Bytes of one expert as it is read."""
        return sum(math.prod(a.shape) * a.dtype.itemsize for a in jax.tree.leaves(self.spec()))

    @property
    def nbytes(self) -> int:
        """Bytes of all experts."""
        return len(self.layers) * self.experts * self.expert_bytes

    def _one(self, leaf: str) -> Any:
        there = self._weights.leaves[leaf]
        return jax.ShapeDtypeStruct(there.shape[2:], there.dtype)

    def _matrix(self, leaf: str, layer: int, expert: int) -> Any:
        if leaf in self._weights.leaves:
            return self._read(leaf, layer, expert)
        return Scaled(self._read(f"{leaf}.codes", layer, expert),
                      self._read(f"{leaf}.scales", layer, expert),
                      scaled.resting_shapes(self._specs[leaf])[2])

    def _read(self, leaf: str, layer: int, expert: int) -> Any:
        shape = self._weights.leaves[leaf].shape
        box = (slice(layer, layer + 1), slice(expert, expert + 1),
               *(slice(0, n) for n in shape[2:]))
        return self._weights.read(leaf, box)[0, 0]


class InMemory:
    """Arrays of some weights in the host's memory, read once."""

    def __init__(self, weights: Weights) -> None:
        """Read every array, in the boxes that are cheap to read."""
        self.cfg, self.leaves = weights.cfg, weights.leaves
        self._arrays = {leaf: np.empty(there.shape, there.dtype)
                        for leaf, there in weights.leaves.items()}
        for leaf, there in weights.leaves.items():
            for box in there.chunks():
                self._arrays[leaf][box] = weights.read(leaf, box)

    def read(self, name: str, index: Index) -> np.ndarray:
        """Return the numbers in a box of an array."""
        return self._arrays[name][index]


class Part:
    """Some of the arrays of weights."""

    def __init__(self, weights: Weights, leaves: Mapping[str, Leaf]) -> None:
        self.cfg, self.leaves, self.read = weights.cfg, leaves, weights.read


def split(weights: Weights) -> tuple[Part, Part]:
    """Everything but the routed experts, and these alone."""
    wanted = set(expert_leaves(weights.cfg))
    kinds: tuple[dict[str, Leaf], dict[str, Leaf]] = ({}, {})
    for leaf, there in weights.leaves.items():
        owner = leaf.removesuffix(".codes").removesuffix(".scales")
        kinds[owner in wanted][leaf] = there
    return Part(weights, kinds[False]), Part(weights, kinds[True])


def expert_leaves(cfg: ModelConfig) -> list[str]:
    """Names of the leaves that hold routed experts."""
    return [leaf for leaf, spec in trees.paths(transformer.specs(cfg)) if _is_routed(spec)]


def without_experts(specs: Tree) -> Tree:
    """The same Specs with None where routed experts are."""
    return trees.map_specs(lambda spec: None if _is_routed(spec) else spec, specs)


def name(stack: str, field: str) -> str:
    """Name of a leaf of a stack's routed experts."""
    return f"{stack}.ffn.experts.{field}"


def _is_routed(spec: Spec) -> bool:
    return spec.role == "expert"
