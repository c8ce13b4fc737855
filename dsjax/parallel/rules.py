"""Rules that place every parameter: logical axes to mesh axes, each line with its reason.

Two placements of one tree. `used` is where a layer finds its weights; `stored` is where masters and
moments rest between steps. Under ZeRO-1 (V3 report sec. 3.2) `stored` also cuts each leaf over the
axes that hold copies of it: a step gathers what it uses once, and gradients are summed into the cut
form, so that every device updates its own part. A leaf no dim of which divides stays whole: norms
and biases, a thousandth of the bytes.
"""

from __future__ import annotations

import math
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dsjax import params
from dsjax.parallel.mesh import AXES, DATA, EXPERT, EXPERTS, FSDP, NODE, PIPE
from dsjax.params import Spec, Tree

Names = tuple[str, ...]

RULES: dict[str, Names] = {
    "batch": AXES,  # rows are cut over every device: all work on tokens is local but experts'
    "expert": EXPERTS,  # an expert's two matrices stay whole on one device, as in V3's EP
    "embed": (FSDP,),  # the dim that nearly every matrix has, and the largest
    "rank": (FSDP,),  # the up-projections of latent attention have no embed dim
    "vocab": (),  # embedding and head are used once a step: a gather is cheaper than cut logits
    "head": (),  # no tensor parallelism: latents make it needless (V3 report sec. 3.2)
    "hidden": (),  # the same: experts are small enough to be whole
    "layer": (),  # scanned: a cut would move layers between devices
    "depth": (),  # MTP modules run one after the other
}

ZERO: Names = (PIPE, DATA, NODE, EXPERT)  # hold copies of a leaf, unless it is cut over them
ZERO_DIMS = ("embed", "rank", "vocab", "hidden", "head", "layer", "expert")  # which dim to cut


def used(spec: Spec) -> PartitionSpec:
    """Mesh axes of each dim where a layer uses a parameter.

    A mesh axis cuts one dim; only stacked leaves are cut over `fsdp`, as they are gathered a layer
    at a time.
    """
    taken: set[str] = set()
    found: list[Any] = []
    for axis in spec.axes:
        if axis is not None and axis not in RULES:
            raise ValueError(f"the logical axis {axis!r} has no rule; add one to rules.RULES")
        names = tuple(n for n in (RULES[axis] if axis else ()) if n not in taken)
        if FSDP in names and not {"layer", "depth"} & set(spec.axes):
            names = ()
        taken |= set(names)
        found.append(names or None)
    return PartitionSpec(*found)


def used_layer(spec: Spec | Tree) -> PartitionSpec:
    """As `used`, of one layer's part of a stacked parameter."""
    return PartitionSpec(*list(used(params.stack(spec, 1)))[1:])


def stored(spec: Spec, mesh: Mesh, *, use_zero: bool) -> PartitionSpec:
    """Mesh axes of each dim where a parameter's master and moments rest."""
    found = [mesh_axes(entry) for entry in used(spec)]
    copies = (FSDP, *(ZERO if use_zero else ()))
    free = [n for n in copies if mesh.shape.get(n, 1) > 1 and not any(n in f for f in found)]
    order = [i for name in ZERO_DIMS for i, axis in enumerate(spec.axes) if axis == name]
    for axis in free:
        for dim in order:
            parts = math.prod(mesh.shape[n] for n in (*found[dim], axis))
            if spec.shape[dim] % parts == 0:
                found[dim] = (*found[dim], axis)
                break
    return PartitionSpec(*(names or None for names in found))


def mesh_axes(entry: Any) -> Names:
    """The mesh axes of one dim of a PartitionSpec."""
    if entry is None:
        return ()
    return (entry,) if isinstance(entry, str) else tuple(entry)


def used_shardings(specs: Tree, mesh: Mesh) -> Tree:
    """Shardings of parameters within a step."""
    return params.map_specs(lambda s: _fitting(s.shape, used(s), mesh), specs)


def stored_shardings(specs: Tree, mesh: Mesh, *, use_zero: bool) -> Tree:
    """Shardings of parameters between steps, and of what is shaped like them."""
    return params.map_specs(
        lambda s: _fitting(s.shape, stored(s, mesh, use_zero=use_zero), mesh), specs)


def quantized_sharding(spec: Spec, leaf: jax.Array, mesh: Mesh) -> NamedSharding:
    """Sharding, within a step, of the low-precision form [..., K, N] of a matrix, or its scales.

    Leading dims lie as the matrix's do; K is cut as its first dim is, N as the first dim of its
    columns, where they divide.
    """
    by_dim = list(used(spec))
    columns = spec.batch_dims + spec.contract_dims
    entries = [*by_dim[: spec.batch_dims + 1], *by_dim[columns : columns + 1]]
    entries += [None] * (leaf.ndim - len(entries))
    return _fitting(leaf.shape, PartitionSpec(*entries), mesh)


def _fitting(shape: tuple[int, ...], spec: PartitionSpec, mesh: Mesh) -> NamedSharding:
    """The sharding by `spec`, a dim that does not divide left whole."""
    entries = []
    for size, entry in zip(shape, spec, strict=True):
        parts = math.prod(mesh.shape[n] for n in mesh_axes(entry))
        entries.append(entry if size % parts == 0 else None)
    return NamedSharding(mesh, PartitionSpec(*entries))
