"""The seam to Flax NNX: a parameter tree as an `nnx.Module`, and back.

Users of nnx train, inspect and quantize with their own tools (`nnx.Optimizer`, `nnx.jit`, qwix).
A module here is the parameter tree with Variables for arrays, under the same names; its call is the
house's one forward pass. What the optimizer may change is an `nnx.Param`; the router's selection
bias is a `SelectionBias`, a Variable of its own kind, so `wrt=nnx.Param` leaves it out.

Axes: B batch, T time, V vocabulary.
"""

from __future__ import annotations

import operator
from typing import Any

import jax
from flax import nnx
from jax import Array

from dsjax.config.model import ModelConfig
from dsjax.layers.backend import Backend, single
from dsjax.model import transformer
from dsjax.model.transformer import TransformerParams
from dsjax.params import is_spec, paths


class SelectionBias(nnx.Variable):
    """A router's bias: moved by the balance rule, never by a gradient."""


class Node(nnx.Module):
    """One parameter class: its fields are Nodes and Variables."""


class Model(nnx.Module):
    """A dsjax model as an nnx module; `model(tokens)` gives logits."""

    def __init__(self, params: TransformerParams, cfg: ModelConfig,
                 backend: Backend | None = None) -> None:
        """Hold the arrays of `params` as Variables; the config and the backend are static."""
        self.cfg = cfg
        self.backend = backend or single()
        self.params = _node(transformer.specs(cfg), params)

    def __call__(self, tokens: Array, segments: Array | None = None) -> Array:
        """Logits [B, T, V] float32 of tokens [B, T] int32."""
        return transformer.logits(to_params(self), tokens, self.cfg, segments, self.backend)


def to_params(model: Model) -> TransformerParams:
    """The parameter tree a module holds, as the dataclasses that every dsjax function takes."""
    return _tree(transformer.specs(model.cfg), model.params)


def update(model: Model, params: TransformerParams) -> None:
    """Write a parameter tree back into a module, leaf by leaf."""

    names = [name for name, _ in paths(transformer.specs(model.cfg))]
    for name, value in zip(names, jax.tree.leaves(params), strict=True):
        _variable(model.params, name)[...] = value


def _node(specs: Any, values: Any) -> Node:
    """Nodes of Variables by the names of the leaves."""
    root = Node()
    for (name, spec), value in zip(paths(specs), jax.tree.leaves(values), strict=True):
        *owners, last = name.split(".")
        node = root
        for owner in owners:
            if not hasattr(node, owner):
                setattr(node, owner, Node())
            node = getattr(node, owner)
        setattr(node, last, nnx.Param(value) if spec.is_trainable else SelectionBias(value))
    return root


def _variable(node: Node, name: str) -> Any:
    """The Variable of a leaf."""
    return operator.attrgetter(name)(node)


def _tree(specs: Any, node: Node) -> Any:
    """A parameter tree of the arrays that Variables hold."""
    values = [jax.tree.leaves(_variable(node, name))[0] for name, _ in paths(specs)]
    return jax.tree.unflatten(jax.tree.structure(specs, is_leaf=is_spec), values)
