"""Bytes that a step needs on one device, by kind, and what to change where they are too many.

Masters, moments and the batch are what the step takes as arguments: their shapes and shardings say
the bytes. So do those of compute weights (what products read, made once a step) and of gradients
(float32, as the layers leave them), at most: a compiler may move either into the loop over layers,
and they are taken for less where the whole is less. The compiler says the whole; what it needs
beyond these is what waits for the backward pass and what a layer works with.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import Mesh

from dsjax import params
from dsjax.config.run import RunConfig
from dsjax.numerics import products as numerics
from dsjax.numerics.products import Products
from dsjax.parallel import rules
from dsjax.parallel.mesh import divisors
from dsjax.plan.ahead import shard_bytes

Tree = Any
KINDS = ("masters", "moments", "compute weights", "gradients", "batch and counts",
         "activations and temporaries")


@dataclass(frozen=True)
class Memory:
    """Bytes of one device."""

    parts: dict[str, int]  # by KINDS
    total: int  # that the compiler asks for
    limit: int  # that a device has

    @property
    def fits(self) -> bool:
        """Whether a device has enough."""
        return self.total <= self.limit


def measure(total: int, limit: int, state: dict[str, Tree], batch: Tree, specs: Tree, mesh: Mesh,
            products: Products) -> Memory:
    """Split the bytes that a compiler asks for by kind.

    state: trees of abstract arrays with shardings, by the first two of KINDS.
    """
    parts = {name: shard_bytes(tree) for name, tree in state.items()}
    parts["compute weights"] = _weights(specs, mesh, products)
    parts["gradients"] = _gradients(specs, mesh)
    parts["batch and counts"] = shard_bytes(batch)
    for name in ("compute weights", "gradients"):  # a compiler may make them a layer at a time
        parts[name] -= min(parts[name], max(sum(parts.values()) - total, 0))
    parts["activations and temporaries"] = total - sum(parts.values())
    return Memory({name: parts[name] for name in KINDS}, total, limit)


def _weights(specs: Tree, mesh: Mesh, products: Products) -> int:
    """What products read: the held form of every product matrix, other leaves in float32."""
    def one(spec: params.Spec) -> int:
        leaf = jax.ShapeDtypeStruct(spec.shape, "float32")
        if not spec.is_product or products.name == "fp32":
            where = rules.used_shardings(spec, mesh)
            return math.prod(where.shard_shape(spec.shape)) * 4
        held = jax.eval_shape(
            lambda w: products.hold_weight(numerics.as_matrix(w, spec), spec.parts), leaf)
        return sum(
            math.prod(rules.held_sharding(spec, a, mesh).shard_shape(a.shape)) * a.dtype.itemsize
            for a in jax.tree.leaves(held))

    return sum(jax.tree.leaves(params.map_specs(one, specs)))


def _gradients(specs: Tree, mesh: Mesh) -> int:
    """Float32 gradients where layers leave them, before they are cut as masters are."""
    return sum(
        math.prod(rules.used_shardings(spec, mesh).shard_shape(spec.shape)) * 4
        for spec in jax.tree.leaves(specs, is_leaf=params.is_spec))


def advice(memory: Memory, run: RunConfig) -> str:
    """What to change so that a step fits, the largest part first; empty where it fits."""
    if memory.fits:
        return ""
    ways = {
        "masters": _cut_state, "moments": _cut_state,
        "compute weights": _cut_weights, "gradients": _cut_weights,
        "activations and temporaries": _cut_activations,
    }
    largest = sorted(ways, key=lambda name: -memory.parts[name])
    said = [f"{name} take {memory.parts[name] / 1e9:.1f} GB: {ways[name](run)}"
            for name in largest if memory.parts[name] > memory.limit / 10]
    over = (memory.total - memory.limit) / 1e9
    return (f"{over:.1f} GB too many. " + "; ".join(dict.fromkeys(said)) + ".")


def _cut_state(run: RunConfig) -> str:
    if not run.parallel.use_zero:
        return "cut them over data and expert with --parallel.use-zero"
    return "use more devices, or --optimizer.moments bfloat16"


def _cut_weights(run: RunConfig) -> str:
    layout = run.parallel
    wider = [n for n in divisors(run.model.d_model) if n > layout.fsdp]
    if layout.data > 1 and wider and layout.data % 2 == 0:
        return (f"cut them over twice as many devices, --parallel.fsdp {2 * layout.fsdp} "
                f"--parallel.data {layout.data // 2}")
    if run.model.moe is not None and layout.expert < run.model.moe.experts:
        return f"share experts over more devices, --parallel.expert {2 * layout.expert}"
    return "use more devices"


def _cut_activations(run: RunConfig) -> str:
    stronger = {"none": "v3", "v3": "full"}
    rows = run.train.batch // (run.train.microbatches * run.parallel.row_devices)
    if rows > 1:
        return f"fewer rows at once, --train.microbatches {2 * run.train.microbatches}"
    if run.place.remat in stronger:
        return f"make more again in the backward pass, --place.remat {stronger[run.place.remat]}"
    return "use shorter rows or lower --parallel.headroom"
