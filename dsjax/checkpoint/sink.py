"""The sink of weights: arrays filled piece by piece on the devices that hold them.

Each device's shard is one buffer, allocated once and written in place (donated updates): a chunk
goes only to the shards it meets, and a device never holds more than its shards and one chunk. A
process reads what its own devices hold, so that several fill an array together.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding

from dsjax import params as trees
from dsjax.checkpoint import reader
from dsjax.checkpoint.boxes import Index, bounded, meet, relative
from dsjax.checkpoint.reader import Leaf, Weights
from dsjax.model import transformer
from dsjax.model.transformer import TransformerParams
from dsjax.params import Spec

Shardings = Any
"""None (this process's first device), a tree of shardings like the parameters, or a function of a
leaf's name and shape."""
Progress = Callable[[int, int], None]
"""Called with bytes done and bytes in all."""
ALIGNMENT = 64


def load(weights: Weights, shardings: Shardings = None,
         progress: Progress | None = None) -> TransformerParams:
    """Stream weights onto devices, each number onto the shards that hold it and nowhere else."""
    return reader.tree(weights.cfg, arrays(weights, shardings, progress))


def arrays(weights: Weights, shardings: Shardings = None,
           progress: Progress | None = None) -> dict[str, Array]:
    """As `load`, by name: also of weights that are a part of a model's."""
    buffers = Buffers(weights.leaves, _sharding_of(weights, shardings))
    total = sum(leaf.nbytes for leaf in weights.leaves.values())
    done = 0
    for name, index, values in reader.read_ahead(weights, _wanted(weights, buffers)):
        buffers.put(name, index, values)
        done += values.nbytes
        if progress is not None:
            progress(done, total)
    return buffers.arrays()


def nbytes_here(weights: Weights, shardings: Shardings) -> int:
    """Return the bytes that weights take in the memory of this process's first device.

    Its CPU devices share one.
    """
    sharding_of = _sharding_of(weights, shardings)
    total = 0
    for name, leaf in weights.leaves.items():
        sharding = sharding_of(name)
        here: list[jax.Device] = list(sharding.addressable_devices)
        count = len(here) if here[0].platform == "cpu" else 1
        total += count * math.prod(sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    return total


def _wanted(weights: Weights, buffers: Buffers) -> Iterator[tuple[str, Index]]:
    """The chunks of every array, each cut to what this process's devices hold of it."""
    for name, leaf in weights.leaves.items():
        for index in leaf.chunks():
            inside = buffers.part(name, index)
            if inside is not None:
                yield name, inside


class Buffers:
    """Arrays under construction, by name; every number is put once.

    On the platforms of `host_platforms` a shard is filled as a NumPy array, which becomes the
    device's without a copy; elsewhere by donated updates.
    """

    def __init__(self, leaves: Mapping[str, Leaf], sharding_of: Callable[[str], Sharding],
                 host_platforms: tuple[str, ...] = ("cpu",)) -> None:
        self._shardings = {name: sharding_of(name) for name in leaves}
        self._shapes = {name: leaf.shape for name, leaf in leaves.items()}
        self._shards: dict[str, dict[Any, Array | np.ndarray]] = {}
        self._bounds: dict[str, dict[Any, Index]] = {}
        self._writing: dict[Any, Array] = {}
        for name, leaf in leaves.items():
            sharding = self._shardings[name]
            bounds: Mapping[Any, Index | None] = sharding.addressable_devices_indices_map(
                leaf.shape)
            self._bounds[name] = {d: bounded(i or (), leaf.shape) for d, i in bounds.items()}
            local = sharding.shard_shape(leaf.shape)
            self._shards[name] = {
                d: _aligned(local, leaf.dtype)
                if d.platform in host_platforms
                else jnp.zeros(local, leaf.dtype, device=d)
                for d in bounds
            }

    def part(self, name: str, index: Index) -> Index | None:
        """Return the part of a box that this process needs; None where it holds none of it."""
        held = [inside for bounds in self._bounds[name].values()
                if (inside := meet(index, bounds)) is not None]
        if not held:
            return None
        return tuple(slice(min(s.start for s in dim), max(s.stop for s in dim))
                     for dim in zip(*held))

    def put(self, name: str, index: Index, values: np.ndarray) -> None:
        """Write values [the sizes of `index`] into an array, on whichever devices hold them."""
        for device, bounds in self._bounds[name].items():
            inside = meet(index, bounds)
            if inside is None:
                continue
            source, target = relative(inside, index), relative(inside, bounds)
            shard = self._shards[name][device]
            if isinstance(shard, np.ndarray):
                shard[target] = values[source]
                continue
            if device in self._writing:  # one chunk at a time is on its way to a device
                self._writing.pop(device).block_until_ready()
            block = jax.device_put(np.ascontiguousarray(values[source]), device)
            starts = tuple(np.int32(s.start) for s in target)
            shard = self._shards[name][device] = _update(shard, block, starts)
            self._writing[device] = shard

    def arrays(self) -> dict[str, Array]:
        """Return the arrays, all of their numbers in place."""
        made: dict[str, Array] = {}
        self._writing.clear()
        while self._shards:
            name = next(iter(self._shards))
            shards = [jax.device_put(s, d) for d, s in self._shards.pop(name).items()]
            made[name] = jax.make_array_from_single_device_arrays(
                self._shapes[name], self._shardings[name], shards
            )
        return made


def _sharding_of(weights: Weights, shardings: Shardings) -> Callable[[str], Sharding]:
    """The sharding of an array by its name."""
    if shardings is None:
        first = SingleDeviceSharding(jax.local_devices()[0])
        return lambda name: first
    if callable(shardings):
        return lambda name: shardings(name, weights.leaves[name].shape)
    by_name = dict(trees.paths(shardings))
    specs = dict(trees.paths(transformer.specs(weights.cfg)))

    def find(name: str) -> Sharding:
        if name in by_name:
            return by_name[name]
        owner = name.rpartition(".")[0]
        return _at_rest(by_name[owner], specs[owner], weights.leaves[name].shape)

    return find


def _at_rest(sharding: Sharding, spec: Spec, shape: tuple[int, ...]) -> Sharding:
    """The sharding of the codes or scales of a matrix that has this one.

    Stacked dims are cut as the matrix's, K as its first dim, N as the first dim of its columns,
    where they divide.
    """
    if not isinstance(sharding, NamedSharding):
        return sharding
    by_dim = [*sharding.spec, *(None for _ in range(len(spec.shape) - len(sharding.spec)))]
    columns = spec.batch_dims + spec.contract_dims
    entries = [*by_dim[: spec.batch_dims + 1], *by_dim[columns : columns + len(shape)]]
    entries = entries[: len(shape)]
    sizes = sharding.mesh.shape

    def parts(entry: Any) -> int:
        names = () if entry is None else (entry,) if isinstance(entry, str) else entry
        return math.prod(sizes[n] for n in names)

    fitting = [e if n % parts(e) == 0 else None for n, e in zip(shape, entries)]
    return NamedSharding(sharding.mesh, PartitionSpec(*fitting))


def _aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Zeros at an address that JAX takes over as it is."""
    size = math.prod(shape) * dtype.itemsize
    raw = np.zeros(size + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + size].view(dtype).reshape(shape)


@functools.partial(jax.jit, donate_argnums=0)
def _update(shard: Array, block: Array, starts: tuple) -> Array:
    return jax.lax.dynamic_update_slice(shard, block, starts)
