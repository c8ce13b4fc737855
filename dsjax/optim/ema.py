"""An exponential moving average of the parameters, kept in host memory beside the training.

DeepSeek-V3 report, sec. 3.2.3: the average lives in CPU memory and is updated after each step while
the device works on. With decay d and parameters p after step t:

    average <- d average + (1 - d) p

The step is not held up: `update` dispatches a copy of the parameters on the device and returns.
The copy is a program of its own, queued behind the step that makes the parameters and before the
one that will overwrite (donate) them; on a CPU, where arrays and NumPy share memory, it also keeps
the average from reading a buffer in use. A thread waits for the copy, fetches it and averages in
place, in float32. One update may be under way; the next waits for it, so nothing is lost or
reordered and a resumed run repeats the same numbers. Where the host is slower than the device, a
larger `every` is the remedy.

With `every` = n only each n-th step is averaged, with decay d^n: a memory as long in steps, on a
coarser sample. Price: one more copy of the parameters on the device, for the time of the transfer.
The report does not give d.
"""

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

Tree = Any
Place = tuple[tuple[int, int], ...]  # first and end of a block in each dim of its leaf


class HostEMA:
    """The running average and its thread; a process keeps the blocks that its own devices hold."""

    def __init__(
        self, params: Tree, decay: float, every: int = 1, start: Tree | None = None
    ) -> None:
        """Begin at `start` (an average restored from a checkpoint), or at `params` themselves.

        params: jax arrays, whose shapes and shardings the average adopts; they are not kept.
        """
        if not 0 <= decay < 1:
            raise ValueError(f"ema decay={decay} must be at least 0 and below 1; try 0.999")
        if every < 1:
            raise ValueError(f"ema every={every} must be at least 1; 1 averages every step")
        leaves, self._form = _flatten(params)
        self._layout = [(p.shape, p.sharding) for p in leaves]
        first = leaves if start is None else self._placed(start)
        self._blocks = [[(place, v.copy()) for place, v in _blocks(leaf)] for leaf in first]
        self._snapshot = jax.jit(
            lambda ps: [jnp.copy(p) for p in ps], out_shardings=[p.sharding for p in leaves]
        )
        self._keep = decay**every
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ema")
        self._pending: Future[None] | None = None
        self.every = every

    def update(self, params: Tree, step: int) -> bool:
        """Take the parameters after `step` into the average, soon; true if this step is averaged.

        Call it between the step that returned `params` and the one they are donated to.
        """
        if step % self.every:
            return False
        snapshot = self._snapshot(self._form.flatten_up_to(params))
        self.wait()
        self._pending = self._thread.submit(self._average, snapshot)
        return True

    def wait(self) -> None:
        """Return when every update is in the average; raise what went wrong in its thread."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending.result()

    def arrays(self) -> Tree:
        """Copy the average to jax arrays, float32, sharded as the parameters are."""
        self.wait()
        leaves = [_assemble(*layout, dict(b)) for layout, b in zip(self._layout, self._blocks)]
        return jax.tree.unflatten(self._form, leaves)

    def close(self) -> None:
        """Finish the pending update and end the thread."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()

    def _average(self, snapshot: list[Array]) -> None:
        """Fold a snapshot into the blocks; runs in the thread, which waits for the device."""
        keep, take = np.float32(self._keep), np.float32(1 - self._keep)
        for leaf, blocks in zip(snapshot, self._blocks):
            for (_, average), (_, new) in zip(blocks, _blocks(leaf)):
                average *= keep
                average += take * new

    def _placed(self, start: Tree) -> list[Array]:
        """Lay a stored average out as the parameters are."""
        values = self._form.flatten_up_to(start)
        for value, (shape, _) in zip(values, self._layout):
            if value.shape != shape:
                raise ValueError(
                    f"a stored average has the shape {value.shape} where the model has {shape}; "
                    "resume with the model that wrote it"
                )
        return [jax.device_put(v, sharding) for v, (_, sharding) in zip(values, self._layout)]


def _blocks(leaf: Array) -> list[tuple[Place, np.ndarray]]:
    """Every different block of a leaf on this process's devices, as float32, perhaps its memory."""
    blocks = {_place(s.index, leaf.shape): s.data for s in leaf.addressable_shards}
    fetched = ((place, jax.device_get(data)) for place, data in blocks.items())
    return [(place, data.astype(np.float32, copy=False)) for place, data in fetched]


def _assemble(
    shape: tuple[int, ...], sharding: jax.sharding.Sharding, blocks: dict[Place, np.ndarray]
) -> Array:
    """Put copies of a leaf's blocks on the devices that hold them."""

    def block(index: tuple[slice, ...] | None) -> np.ndarray:
        return blocks[_place(index or (), shape)].copy()

    return jax.make_array_from_callback(shape, sharding, block)


def _place(index: tuple[slice, ...], shape: tuple[int, ...]) -> Place:
    """Hashable form of the slices that a block takes of the whole leaf."""
    return tuple(one.indices(size)[:2] for one, size in zip(index, shape))


def _flatten(tree: Tree) -> tuple[list[Array], Any]:
    """Leaves and structure (jax.tree.flatten, whose structure type has no stubs)."""
    return jax.tree.flatten(tree)
