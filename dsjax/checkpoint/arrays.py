"""Arrays of a checkpoint on disk, read and written a box at a time.

orbax keeps arrays with tensorstore, in few files (OCDBT). Conversions, which know no whole array,
write with tensorstore alone, one file a chunk (zarr3): an array a folder, or, by earlier versions,
an array a folder inside the frame of an orbax checkpoint. All are read here.

All store chunks that equal the fill value. Conversions once did not: a chunk of zeros was left out
there, and is zeros when read. That is sound because a checkpoint's manifest lists every file: one
that was written and is gone is found before anything is read (`files.verify`).
"""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from dsjax.checkpoint.boxes import Index
from dsjax.checkpoint.plain import plain
from dsjax.checkpoint.reader import CHUNK, Leaf
from dsjax.errors import UserError


class Written(Protocol):
    """A write under way."""

    def result(self) -> Any:
        """Return when the disk holds it; raises what went wrong."""


class Arrays:
    """The arrays of a checkpoint, by dotted name."""

    def __init__(self, folder: Path) -> None:
        """Open the `arrays` folder of a checkpoint."""
        self._at = _frame(plain(folder))
        self._is_orbax = (self._at / "manifest.ocdbt").is_file()
        self.opened = functools.lru_cache(maxsize=8)(self._open)

    def read(self, name: str, index: Index) -> np.ndarray:
        """Return the numbers in a box of an array."""
        return self.opened(name)[index].read().result()

    def leaf(self, name: str) -> Leaf:
        """Return shape, dtype, and the box in which an array is read: a stored chunk or a part."""
        array = self.opened(name)
        return Leaf(tuple(array.shape), array.dtype.numpy_dtype,
                    _cut(array.chunk_layout.read_chunk.shape, array.dtype.numpy_dtype.itemsize))

    def _open(self, name: str) -> Any:
        """One array; its last chunk is kept, which may hold more than the box that is read."""
        import tensorstore

        kvstore: dict[str, Any] = _file(self._at / name)
        if self._is_orbax:
            kvstore = {"driver": "ocdbt", "base": _file(self._at), "path": f"{name}/"}
        spec = {"driver": "zarr3", "kvstore": kvstore, "recheck_cached_data": "open",
                "fill_missing_data_reads": not self._is_orbax}
        array = tensorstore.open(spec, open=True).result()
        shape: Any = array.chunk_layout.read_chunk.shape
        chunk = math.prod(shape) * array.dtype.numpy_dtype.itemsize
        context = tensorstore.Context({"cache_pool": {"total_bytes_limit": int(chunk * 1.1)}})
        return tensorstore.open(spec, open=True, context=context).result()


class Chunked:
    """An array that is written chunk by chunk, a file each, as zarr3 lays it out.

    A chunk's file appears whole, and flushed to the disk, by a rename: where it is, it is written.
    """

    def __init__(self, where: Path, leaf: Leaf) -> None:
        """Make the array, or open what is there of it; the path must be plain."""
        import tensorstore

        self._where, self._chunk = where, leaf.chunk
        metadata = {
            "shape": list(leaf.shape),
            "data_type": leaf.dtype.name,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(leaf.chunk)}},
            "fill_value": 0.0,
        }
        spec = _spec(where) | {"metadata": metadata}
        self._array = tensorstore.open(spec, open=True, create=True).result()

    def has(self, index: Index) -> bool:
        """True if a chunk is written."""
        first = (str(s.start // n) for s, n in zip(index, self._chunk))
        return self._where.joinpath("c", *first).is_file()

    def write(self, index: Index, values: np.ndarray) -> Written:
        """Begin to write a whole chunk, zeros too; `values` are read until the result is there."""
        return self._array[index].write(values)


def _spec(where: Path) -> dict[str, Any]:
    return {"driver": "zarr3", "kvstore": _file(where), "store_data_equal_to_fill_value": True}


def _file(folder: Path) -> dict[str, Any]:
    return {"driver": "file", "path": f"{folder}/"}


def _frame(folder: Path) -> Path:
    """The folder that holds the arrays: inside an orbax checkpoint, or `folder` itself."""
    found = sorted(p.parent for p in folder.glob("*/_METADATA"))
    if not found and any(folder.glob("*/zarr.json")):
        return folder.absolute()
    if len(found) != 1:
        raise UserError(f"{folder} is no checkpoint that this version of orbax knows")
    return found[0].absolute()


def _cut(chunk: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    """A stored chunk, or the part of it along its first dims that is about 16 MB."""
    box = list(chunk)
    for dim, n in enumerate(chunk):
        box[dim] = 1
        fit = CHUNK // max(1, math.prod(box) * itemsize)
        if fit:
            box[dim] = min(n, fit)
            break
    return tuple(box)
