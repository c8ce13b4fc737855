"""The seam to Flax NNX: a parameter tree as an `nnx.Module`, and back.

Users of nnx train, inspect and quantize with their own tools (`nnx.Optimizer`, `nnx.jit`, qwix).
A module here is the parameter tree with Variables for arrays, under the same names; its call is the
house's one forward pass. What the optimizer may change is an `nnx.Param`; the router's selection
bias is a `SelectionBias`, a Variable of its own kind, so `wrt=nnx.Param` leaves it out.

Axes: B batch, T time, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
from flax import nnx
from jax import Array

from dsjax.config.model import ModelConfig
from dsjax.layers.backend import Backend, single
from dsjax.model import transformer
from dsjax.model.transformer import TransformerParams
from dsjax.params import Spec, is_spec


class SelectionBias(nnx.Variable):
    """A router's bias: moved by the balance rule, never by a gradient."""


class Node(nnx.Module):
    """One parameter class: its fields are Nodes, Variables or None."""


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

    def write(node: Any, tree: Any) -> None:
        if isinstance(node, nnx.Variable):
            node[...] = tree
        elif node is not None:
            for field in dataclasses.fields(tree):
                write(getattr(node, field.name), getattr(tree, field.name))

    write(model.params, params)


def _node(spec: Any, value: Any) -> Any:
    """Variables and Nodes in place of arrays and dataclasses."""
    if spec is None:
        return None
    if isinstance(spec, Spec):
        return nnx.Param(value) if spec.is_trainable else SelectionBias(value)
    node = Node()
    for field in dataclasses.fields(spec):
        setattr(node, field.name, _node(getattr(spec, field.name), getattr(value, field.name)))
    return node


def _tree(spec: Any, node: Any) -> Any:
    """Dataclasses and arrays in place of Nodes and Variables."""
    if spec is None:
        return None
    if is_spec(spec):
        return jax.tree.leaves(node)[0]
    fields = {f.name: _tree(getattr(spec, f.name), getattr(node, f.name))
              for f in dataclasses.fields(spec)}
    return type(spec)(**fields)
