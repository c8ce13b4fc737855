"""Part of a model that learns, and how it stands among the weights that rest.

A run with `lora` or `experts` trains a tree of its own, by the names of the matrices that it
changes: `Factors` A and B of each, or the chosen experts of all layers. `join` sets them into the
frozen weights (layers/adapted.py), and the forward pass is as ever. For any other run all of this
is the model itself.

Axes: L layers of a stack, E experts, n experts that learn, K summed channels, N columns, r rank.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array

from dsjax import params
from dsjax.config.fields import did_you_mean
from dsjax.config.model import ModelConfig
from dsjax.config.run import RunConfig
from dsjax.config.sft import LoRAConfig
from dsjax.errors import UserError
from dsjax.layers.adapted import LowRank, Replaced
from dsjax.model import transformer
from dsjax.model.transformer import TransformerParams
from dsjax.numerics.precision import as_bits, decoded
from dsjax.numerics.scaled import Scaled
from dsjax.params import Spec, Tree


@struct.dataclass
class Factors:
    """The two matrices of an adapter."""

    a: Any  # [..., K, r]
    b: Any  # [..., r, N]


def is_partial(run: RunConfig) -> bool:
    """True if a part of a run's weights learns and the others rest."""
    return run.lora is not None or run.experts is not None


def specs(run: RunConfig) -> Tree:
    """Describe what a run learns: the model, or a part of it by name."""
    if run.lora is not None:
        return {name: factors(spec, run.lora.rank) for name, spec in
                adapted(run.model, run.lora).items()}
    if run.experts is not None:
        most = max((len(of) for of in run.experts.by_layer.values()), default=0)
        return {name: _chosen(spec, most) for name, spec in routed(run.model).items()}
    return transformer.specs(run.model)


def factors(spec: Spec, rank: int) -> Any:
    """Describe the adapter of a matrix."""
    split = spec.batch_dims + spec.contract_dims
    lead = spec.axes[: spec.batch_dims]
    a = dataclasses.replace(
        spec, shape=(*spec.shape[:split], rank), axes=(*spec.axes[:split], None), init="normal",
        is_product=False, parts=1)
    b = dataclasses.replace(
        spec, shape=(*spec.shape[: spec.batch_dims], rank, *spec.shape[split:]),
        axes=(*lead, None, *spec.axes[split:]), init="zeros", is_product=False, contract_dims=1)
    return Factors(a, b)


def _chosen(spec: Spec, count: int) -> Spec:
    """Describe `count` experts of each layer, of a matrix [L, E, K, N]."""
    return dataclasses.replace(spec, shape=(spec.shape[0], count, *spec.shape[2:]),
                               axes=(spec.axes[0], None, *spec.axes[2:]))


def adapted(cfg: ModelConfig, lora: LoRAConfig) -> dict[str, Spec]:
    """Matrices that have adapters, by name.

    Raises:
        UserError: a target is of no matrix.
    """
    products = {name: spec for name, spec in params.paths(transformer.specs(cfg))
                if spec.is_product}
    by_target: dict[str, dict[str, Spec]] = {}
    for name, spec in products.items():
        for target in (spec.role, name.rpartition(".")[2]):
            by_target.setdefault(target, {})[name] = spec
    known = ("attention", "ffn", "shared_expert", "expert")
    found: dict[str, Spec] = {}
    for target in lora.targets:
        if target not in by_target and target not in known:
            raise UserError(
                f"--lora.targets {target[:40]} is of no matrix{did_you_mean(target, by_target)}; "
                f"choose from {', '.join(sorted(by_target))}")
        found |= by_target.get(target, {})
    if not found:
        raise UserError(f"--lora.targets {' '.join(lora.targets)}: this model has none of them; "
                        f"choose from {', '.join(sorted(by_target))}")
    return {name: spec for name, spec in products.items() if name in found}


def routed(cfg: ModelConfig) -> dict[str, Spec]:
    """The matrices of the main model's routed experts, by name."""
    stacks = [stack.name for stack in cfg.stacks if stack.is_moe]
    return {name: spec for name, spec in params.paths(transformer.specs(cfg))
            if spec.role == "expert" and name.partition(".")[0] in stacks}


def check(run: RunConfig) -> None:
    """Refuse a part that is none: of no weights, of another model, or on a pipeline."""
    if not is_partial(run):
        return
    if run.lora is not None and run.experts is not None:
        raise UserError("--lora and --experts each freeze all but a part of the model; give one of "
                        "them")
    flag = "--experts" if run.lora is None else "--lora"
    if run.init_from is None:
        raise UserError(f"{flag} trains a part of a model whose other weights rest, and there are "
                        "none; name their folder by --init-from")
    if run.parallel.pipe > 1:
        raise UserError(f"{flag} lies on no pipeline; leave --parallel.pipe out")
    if run.lora is not None:
        adapted(run.model, run.lora)
    elif run.experts is not None:
        if run.model.moe is None or not run.model.moe_layers:
            raise UserError("--experts trains routed experts, and this model has none; use --lora")
        for at, of in run.experts.by_layer.items():
            if at >= run.model.layers or not run.model.stack_of(at)[0].is_moe:
                raise UserError(f"--experts.chosen names layer {at}, which has no routed experts; "
                                f"{run.model.dense_layers} to {run.model.layers - 1} have")
            if of[-1] >= run.model.moe.experts:
                raise UserError(f"--experts.chosen names expert {of[-1]} of layer {at}, which has "
                                f"{run.model.moe.experts}; count from 0")


def places(run: RunConfig) -> np.ndarray:
    """Place of each expert among those of its layer that learn, -1 for others. [L, E] int32."""
    assert run.experts is not None, "experts are chosen"
    assert run.model.moe is not None, "experts are of a mixture"
    found = np.full((run.model.moe_layers, run.model.moe.experts), -1, np.int32)
    for at, of in run.experts.by_layer.items():
        found[run.model.stack_of(at)[1], list(of)] = np.arange(len(of))
    return found


def _taken(run: RunConfig, count: int) -> np.ndarray:
    """Expert in each place, [L, n]; what nobody has chosen stands for none: its copy never learns.
    """
    at = places(run)
    found = np.zeros((len(at), count), np.int32)
    layers, experts = np.nonzero(at >= 0)
    found[layers, at[layers, experts]] = experts
    return found


def init(run: RunConfig, key: Array) -> Tree:
    """Draw the start of what a run learns: the model, or adapters that do nothing yet.

    A is normal with deviation 1 / sqrt(K), so that A^T x is of x's size, whatever the matrix.
    Experts that learn begin as copies (`copied`); here they have shapes alone.
    """
    if run.lora is None:
        return params.init(specs(run), key, run.model.init_std)
    drawn = params.init(specs(run), key, 1.0)

    def sized(spec: Spec, leaf: Array) -> Array:
        inner = spec.shape[spec.batch_dims : spec.batch_dims + spec.contract_dims]
        return leaf / math.sqrt(math.prod(inner))

    return jax.tree.map(sized, specs(run), drawn, is_leaf=params.is_spec)


def copied(run: RunConfig, frozen: TransformerParams) -> Tree:
    """The chosen experts of frozen weights, in float32, with which a run begins."""
    held = dict(_leaves(frozen))

    def start(name: str, spec: Spec) -> Array:
        of, lead = jnp.asarray(_taken(run, spec.shape[1])), jnp.arange(spec.shape[0])[:, None]
        part = jax.tree.map(lambda a: a[lead, of], held[name])
        wide = decoded(part, jnp.float32) if isinstance(part, Scaled) else part
        return wide.astype(jnp.float32).reshape(spec.shape)

    return {name: start(name, spec) for name, spec in specs(run).items()}


def _leaves(frozen: TransformerParams) -> list[tuple[str, Any]]:
    """Weights by name, what rests in 8 bits as one."""
    flat, _ = jax.tree_util.tree_flatten_with_path(
        frozen, is_leaf=lambda leaf: isinstance(leaf, Scaled))
    return [(jax.tree_util.keystr(path, simple=True, separator="."), leaf) for path, leaf in flat]


def join(run: RunConfig, learnt: Mapping[str, Any], frozen: TransformerParams) -> TransformerParams:
    """Set what a run learns into the weights that rest: parameters for the forward pass.

    What rests in 8 bits is handed on as bits (`precision.as_bits`).
    """
    place: Any = None if run.experts is None else jnp.asarray(places(run))

    def one(path: Any, spec: Spec, leaf: Any) -> Any:
        leaf = as_bits(leaf) if isinstance(leaf, Scaled) else leaf
        part = learnt.get(jax.tree_util.keystr(path, simple=True, separator="."))
        if part is None:
            return leaf
        if run.lora is not None:
            return LowRank(leaf, part.a, part.b, run.lora.scale)
        return Replaced(leaf, part, place)

    return jax.tree_util.tree_map_with_path(one, transformer.specs(run.model), frozen,
                                            is_leaf=params.is_spec)
