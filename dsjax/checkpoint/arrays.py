"""Arrays of a checkpoint on disk, read and written a part at a time.

orbax keeps arrays with tensorstore, and so do conversions (`hf_disk`), which know no whole array.
What orbax wrote lies in few files (OCDBT), what a conversion wrote is one file a chunk.

Both store chunks that equal the fill value. Conversions once did not: a chunk of zeros was left out
there, and is zeros when read. That is sound because a checkpoint's manifest lists every file: one
that was written and is gone is found before anything is read (`files.verify`).
"""

from __future__ import annotations

import functools
import math
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Sharding

from dsjax.checkpoint.plain import plain
from dsjax.checkpoint.sink import Index, bounded
from dsjax.errors import UserError


class Arrays:
    """The arrays of a checkpoint, by dotted name."""

    def __init__(self, folder: Path) -> None:
        """Open the `arrays` folder of a checkpoint."""
        self._state = state(plain(folder))
        self.is_orbax = (self._state / "manifest.ocdbt").is_file()
        self.opened = functools.lru_cache(maxsize=8)(self._open)

    def read(self, name: str, index: Index) -> np.ndarray:
        """Numbers of a part of an array."""
        return self.opened(name)[index].read().result()

    def load(self, name: str, sharding: Sharding | None) -> np.ndarray | jax.Array:
        """An array on the devices of a sharding, or on the host without one."""
        shape = tuple(self.opened(name).shape)
        if sharding is None:
            return self.read(name, bounded((), shape))
        return jax.make_array_from_callback(
            shape, sharding, lambda index: self.read(name, bounded(index or (), shape))
        )

    def _open(self, name: str) -> Any:
        """One array; its last chunk is kept, which may hold more than the part that is read."""
        import tensorstore

        kvstore: dict[str, Any] = _file(self._state / name)
        if self.is_orbax:
            kvstore = {"driver": "ocdbt", "base": _file(self._state), "path": f"{name}/"}
        spec = {"driver": "zarr3", "kvstore": kvstore, "recheck_cached_data": "open",
                "fill_missing_data_reads": not self.is_orbax}
        array = tensorstore.open(spec, open=True).result()
        shape: Any = array.chunk_layout.read_chunk.shape
        chunk = math.prod(shape) * array.dtype.numpy_dtype.itemsize
        context = tensorstore.Context({"cache_pool": {"total_bytes_limit": int(chunk * 1.1)}})
        return tensorstore.open(spec, open=True, context=context).result()


def state(folder: Path) -> Path:
    """The folder inside an orbax checkpoint that holds the arrays' tree."""
    found = sorted(p.parent for p in folder.glob("*/_METADATA"))
    if len(found) != 1:
        raise UserError(f"{folder} is no checkpoint that this version of orbax knows")
    return found[0].absolute()


class Chunked:
    """An array that is written chunk by chunk, a file each, as zarr3 lays it out."""

    def __init__(self, where: Path) -> None:
        """Open one that `create` made; the path must be plain."""
        import tensorstore

        self._where = where
        self._written: set[Path] = set()
        # `flush` has the disk hold the files, so tensorstore need not.
        context = tensorstore.Context({"file_io_sync": False})
        self._array = tensorstore.open(_spec(where), open=True, context=context).result()
        self._chunk: Any = self._array.chunk_layout.write_chunk.shape

    def write(self, index: Index, values: np.ndarray) -> None:
        """Write whole chunks, zeros too."""
        self._array[index].write(values).result()
        first = (str(s.start // n) for s, n in zip(index, self._chunk))
        self._written.add(self._where.joinpath("c", *first))

    def flush(self) -> None:
        """Have the disk hold what was written since the last time."""
        for path in self._written | {p.parent for p in self._written}:
            handle = os.open(path, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
        self._written.clear()


def create(where: Path, shape: tuple[int, ...], dtype: np.dtype, chunk: tuple[int, ...]) -> None:
    """Make an array of zeros, none of which is written yet; the path must be plain."""
    import tensorstore

    spec = _spec(where) | {
        "metadata": {
            "shape": list(shape),
            "data_type": dtype.name,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(chunk)}},
            "fill_value": 0.0,
        }
    }
    tensorstore.open(spec, create=True).result()


def _spec(where: Path) -> dict[str, Any]:
    return {"driver": "zarr3", "kvstore": _file(where), "store_data_equal_to_fill_value": True}


def _file(folder: Path) -> dict[str, Any]:
    return {"driver": "file", "path": f"{folder}/"}
