"""Arrays filled and read piece by piece on the devices that hold them.

Each device's shard is one buffer, allocated once and written in place (donated updates): a piece
goes only to the shards it meets, and no second copy of an array ever is. Reading goes the same way
back. Both need no more of a mesh than the shardings.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Sharding, SingleDeviceSharding

Index = tuple[slice, ...]
PENDING = 64 << 20  # bytes on their way to devices
ALIGNMENT = 64


class Buffers:
    """Arrays under construction, by name; every number is put once.

    On the platforms of `host_platforms` a shard is filled as a NumPy array, which becomes the
    device's without a copy; elsewhere by donated updates.
    """

    def __init__(self, leaves: dict[str, tuple[tuple[int, ...], np.dtype]],
                 sharding_of: Callable[[str], Sharding | None],
                 host_platforms: tuple[str, ...] = ("cpu",)) -> None:
        first = SingleDeviceSharding(jax.local_devices()[0])
        self._shardings = {name: sharding_of(name) or first for name in leaves}
        self._shapes = {name: shape for name, (shape, _) in leaves.items()}
        self._shards: dict[str, dict[Any, Array | np.ndarray]] = {}
        self._bounds: dict[str, dict[Any, Index]] = {}
        self._pending = 0
        for name, (shape, dtype) in leaves.items():
            sharding = self._shardings[name]
            bounds: Mapping[Any, Index | None] = sharding.addressable_devices_indices_map(shape)
            self._bounds[name] = {d: bounded(i or (), shape) for d, i in bounds.items()}
            local = sharding.shard_shape(shape)
            self._shards[name] = {
                d: _aligned(local, dtype)
                if d.platform in host_platforms
                else jnp.zeros(local, dtype, device=d)
                for d in bounds
            }

    def put(self, name: str, index: Index, values: np.ndarray) -> None:
        """Write values [the sizes of `index`] into an array, on whichever devices hold them."""
        for device, bounds in self._bounds[name].items():
            inside = _meet(index, bounds)
            if inside is None:
                continue
            source, target = _relative(inside, index), _relative(inside, bounds)
            shard = self._shards[name][device]
            if isinstance(shard, np.ndarray):
                shard[target] = values[source]
                continue
            block = jax.device_put(np.ascontiguousarray(values[source]), device)
            starts = tuple(np.int32(s.start) for s in target)
            shard = self._shards[name][device] = _update(shard, block, starts)
            self._pending += block.nbytes
            if self._pending > PENDING:
                shard.block_until_ready()
                self._pending = 0

    def arrays(self) -> dict[str, Array]:
        """The arrays, all of their numbers in place."""
        made: dict[str, Array] = {}
        while self._shards:
            name = next(iter(self._shards))
            shards = [jax.device_put(s, d) for d, s in self._shards.pop(name).items()]
            made[name] = jax.make_array_from_single_device_arrays(
                self._shapes[name], self._shardings[name], shards
            )
        return made


def _aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Zeros at an address that JAX takes over as it is."""
    size = math.prod(shape) * dtype.itemsize
    raw = np.zeros(size + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + size].view(dtype).reshape(shape)


@functools.partial(jax.jit, donate_argnums=0)
def _update(shard: Array, block: Array, starts: tuple) -> Array:
    return jax.lax.dynamic_update_slice(shard, block, starts)


def region(array: Array | np.ndarray, index: Index) -> np.ndarray:
    """Numbers of a part of an array, from whichever devices hold them."""
    if isinstance(array, np.ndarray):
        return array[index]
    if not array.is_fully_addressable:
        raise ValueError("an array is spread over several processes; save from one that holds all")
    shape = tuple(s.stop - s.start for s in index)
    out = np.empty(shape, array.dtype)
    for shard in array.addressable_shards:
        if shard.replica_id:
            continue
        bounds = bounded(shard.index, array.shape)
        inside = _meet(index, bounds)
        if inside is None:
            continue
        target, source = _relative(inside, index), _relative(inside, bounds)
        if next(iter(shard.data.devices())).platform == "cpu":
            out[target] = np.asarray(shard.data)[source]  # a view, not a copy
            continue
        starts = tuple(np.int32(s.start) for s in source)
        sizes = tuple(s.stop - s.start for s in source)
        out[target] = np.asarray(_slice(shard.data, starts, sizes))
    return out


@functools.partial(jax.jit, static_argnums=2)
def _slice(shard: Array, starts: tuple, sizes: tuple[int, ...]) -> Array:
    return jax.lax.dynamic_slice(shard, starts, sizes)


def bounded(index: tuple, shape: tuple[int, ...]) -> Index:
    """An index with every start and stop written out."""
    index = tuple(index) + (slice(None),) * (len(shape) - len(index))
    return tuple(slice(*s.indices(n)[:2]) for s, n in zip(index, shape))


def _meet(a: Index, b: Index) -> Index | None:
    """What two boxes share; None if nothing."""
    both = tuple(slice(max(x.start, y.start), min(x.stop, y.stop)) for x, y in zip(a, b))
    return both if all(s.start < s.stop for s in both) else None


def _relative(inside: Index, whole: Index) -> Index:
    """A box in the coordinates of one around it."""
    return tuple(slice(i.start - w.start, i.stop - w.start) for i, w in zip(inside, whole))
