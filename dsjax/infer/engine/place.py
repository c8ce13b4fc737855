"""The devices of an engine: one, or a mesh whose every device is a rank with rows of its own.

Over a mesh each of the engine's programs is the single device's, run by every rank on its own slots
and pages (V3 report sec. 3.4: data parallelism around attention, expert parallelism within). It is
written by hand, one shard_map over the whole mesh; ranks only meet where tokens go to their
experts, and where `fsdp` holds a matrix in parts, which are gathered where a layer uses it. Arrays
that differ between ranks lead with them: [R, ...].

Axes: R ranks.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array, lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dsjax.infer import programs
from dsjax.layers.backend import Layout
from dsjax.model import transformer
from dsjax.model.transformer import TransformerParams
from dsjax.parallel import mesh as meshes
from dsjax.parallel.mesh import AXES, FSDP
from dsjax.parallel.rules import mesh_axes
from dsjax.params import Tree

Step = Callable[..., Any]
"""A program of one device: whole trees, `served`, what is asked -> `served`, or it and a result."""

RANKS = PartitionSpec(AXES)


@dataclass(frozen=True)
class Place:
    """One device, or a mesh; says where trees lie and compiles steps there."""

    mesh: Mesh | None = None

    @property
    def ranks(self) -> int:
        """Devices with rows of their own."""
        return 1 if self.mesh is None else self.mesh.size

    def put(self, parts: Sequence[Tree]) -> Tree:
        """Bring a tree for each rank to its rank."""
        if self.mesh is None:
            return parts[0]
        return jax.tree.map(self._cut, *parts)

    def _cut(self, *parts: Any) -> Array:
        assert self.mesh is not None, "one device cuts nothing"
        if jnp.issubdtype(parts[0].dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(self._cut(*map(jax.random.key_data, parts)))
        stacked = np.stack([np.asarray(part) for part in parts])
        return jax.device_put(stacked, meshes.sharding(self.mesh, AXES))

    def everywhere(self, a: np.ndarray) -> Array:
        """Bring an array to every rank, whole."""
        if self.mesh is None:
            return jnp.asarray(a)
        return jax.device_put(a, meshes.sharding(self.mesh))

    def filled(self, make: Callable[[], Tree]) -> Tree:
        """Make the same arrays on every rank."""
        if self.mesh is None:
            return make()
        where = meshes.sharding(self.mesh, AXES)

        def led() -> Tree:
            return jax.tree.map(lambda a: jnp.broadcast_to(a, (self.ranks, *a.shape)), make())

        return jax.jit(led, out_shardings=where)()

    def taken(self, led: Tree) -> list[Tree]:
        """Arrays that lead with ranks, on the host, as a tree for each rank."""
        here = jax.device_get(led)
        if self.mesh is None:
            return [here]
        return [jax.tree.map(lambda a, r=r: a[r], here) for r in range(self.ranks)]

    def written_out(self, p: TransformerParams, is_consumed: bool) -> TransformerParams:
        """Layers as stacks of their own, each matrix cut over devices as it was.

        Consumed arrays of `p` are deleted one by one, so that a device never holds all of them
        twice.
        """
        def cut(a: Array) -> list[Array]:
            layers_of: Any = transformer.layers_of
            if self.mesh is not None:
                layers_of = jax.jit(layers_of, out_shardings=a.sharding)
            layers = layers_of(a) if len(a) > 1 else [a]  # one layer is written out already
            if is_consumed and len(a) > 1:
                jax.block_until_ready(layers)
                a.delete()
            return layers

        return transformer.written_out(p, cut)

    def compiled(self, step: Step, whole: tuple[Tree, ...], served: Tree, asked: Tree,
                 **static: Any) -> Callable[..., Any]:
        """Compile a step for arguments like these; call the result with all but `static`."""
        if self.mesh is None:
            run = programs.compiled(step, *whole, served, asked, **static)
            return lambda whole, served, asked: run(*whole, served, asked)
        return programs.compiled(self.program(step, whole, **static), whole, served, asked)

    def program(self, step: Step, whole: tuple[Tree, ...], **static: Any) -> Any:
        """A step as a jitted program of all ranks: `whole`, served and asked -> as the step does.

        whole: arrays, or their shapes with shardings.
        """
        assert self.mesh is not None, "one device has no ranks"
        specs = tuple(_spec(a) for a in jax.tree.leaves(whole))
        return _on_every_rank(functools.partial(step, **static), self.mesh, specs)


def _spec(a: Array) -> PartitionSpec:
    where = a.sharding
    return where.spec if isinstance(where, NamedSharding) else PartitionSpec()


def _on_every_rank(step: Step, mesh: Mesh, specs: tuple[PartitionSpec, ...]) -> Step:
    """A step of one device as a program of all ranks; `specs` say how leaves of `whole` are cut.

    `served`, `asked` and the results lead with [R].
    """
    def run(whole: tuple[Tree, ...], served: Tree, asked: Tree) -> Tree:
        where = jax.tree.unflatten(jax.tree.structure(whole), specs)

        def here(whole: tuple[Tree, ...], served: Tree, asked: Tree) -> Tree:
            held = jax.tree.map(lambda spec, a: _in_part(a, spec, mesh), where, whole,
                                is_leaf=lambda a: isinstance(a, PartitionSpec))
            mine = jax.tree.map(lambda a: a[0], (served, asked))
            return jax.tree.map(lambda a: a[None], step(*held, *mine))

        # nothing here has a gradient, for which alone it matters what varies between ranks
        return jax.shard_map(here, mesh=mesh, in_specs=(where, RANKS, RANKS), out_specs=RANKS,
                             check_vma=False)(whole, served, asked)

    # the outputs' place is said: an empty array would otherwise lie whole on every device
    return jax.jit(run, donate_argnums=1, out_shardings=NamedSharding(mesh, RANKS))


@struct.dataclass
class Part:
    """A device's part of a matrix that `fsdp` cuts."""

    here: Array
    dim: int = struct.field(pytree_node=False)
    """The dim that is cut, from the end: a layer's is that of its stack."""


def _in_part(a: Array, spec: PartitionSpec, mesh: Mesh) -> Array | Part:
    if mesh.shape[FSDP] > 1:
        for dim, entry in enumerate(spec):
            if FSDP in mesh_axes(entry):
                return Part(a, dim - a.ndim)
    return a


def gathered(tree: Tree) -> Tree:
    """A layer's matrices, whole on every device; inside a program of all ranks."""
    def one(a: Any) -> Any:
        if not isinstance(a, Part):
            return a
        return _all_gathered(a.here, a.here.ndim + a.dim)

    return jax.tree.map(one, tree, is_leaf=lambda a: isinstance(a, Part))


def _all_gathered(a: Array, dim: int) -> Array:
    if a.dtype.itemsize > 1:
        return lax.all_gather(a, FSDP, axis=dim, tiled=True)
    codes = lax.all_gather(lax.bitcast_convert_type(a, jnp.uint8), FSDP, axis=dim, tiled=True)
    return lax.bitcast_convert_type(codes, a.dtype)


def _on_own_rows(f: Callable[..., Tree], whole: Tree, *rows: Tree) -> Tree:
    return f(gathered(whole), *rows)


ON_A_RANK = Layout(gather=gathered, map_rows=_on_own_rows)
"""One device's layout, but that weights may be held in parts."""
