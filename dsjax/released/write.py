"""Writing a released checkpoint: shards, index and config.

A shard holds at most 256 MB or the largest tensor, and is, twice while it is written, all that is
in memory. Shards that an interrupted run left are kept and the next run goes on after them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dsjax import disk
from dsjax.checkpoint.sink import Index
from dsjax.config.model import ModelConfig
from dsjax.released import files, pieces, side
from dsjax.released.files import Progress
from dsjax.released.names import BLOCK, SCALE, Placement, held, placements, scale_shape
from dsjax.released.pieces import BFLOAT16, FP8
from dsjax.released.target import Target

Region = Callable[[str, Index], np.ndarray]
"""Numbers of a part of a leaf, by dotted name; of `X.codes` and `X.scales` for a Scaled."""

SHARD = 256 << 20


@dataclass(frozen=True)
class Output:
    """One tensor to be written."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    place: Placement
    is_scale: bool = False

    @property
    def nbytes(self) -> int:
        """Its bytes in the file."""
        return math.prod(self.shape) * self.dtype.itemsize


def outputs(cfg: ModelConfig, leaves: Mapping[str, np.dtype], dtype: np.dtype | None,
            is_fp8: bool) -> Iterator[Output]:
    """Every tensor of the released form; `leaves` are dtypes by name, `dtype` replaces them."""
    is_kept = any(name.endswith(".codes") for name in leaves)
    for place in placements(cfg):
        own = leaves.get(place.leaf, np.dtype(BFLOAT16))
        if is_fp8 and place.is_product:
            scales = leaves.get(f"{place.leaf}.scales", np.dtype(np.float32))
            shape = scale_shape(place.shape)
            yield Output(place.name, place.shape, np.dtype(FP8), place)
            yield Output(place.name + SCALE, shape, scales, place, is_scale=True)
            continue
        wanted = dtype or (np.dtype(BFLOAT16) if is_fp8 and not is_kept else own)
        if place.leaf.endswith("router.bias"):  # never narrowed; a stored one stays as it was
            wanted = own if own.itemsize < 4 and dtype is None else np.dtype(np.float32)
        yield Output(place.name, place.shape, wanted, place)


def shards(tensors: list[Output]) -> list[list[Output]]:
    """Cut the tensors, in order, into files of bounded size; FP8 and its scales stay together."""
    limit = max(SHARD, *(t.nbytes for t in tensors))
    cut: list[list[Output]] = [[]]
    filled = 0
    for tensor in tensors:
        if filled + tensor.nbytes > limit and cut[-1] and not tensor.is_scale:
            cut.append([])
            filled = 0
        cut[-1].append(tensor)
        filled += tensor.nbytes
    return cut


def make(tensor: Output, leaves: Mapping[str, np.dtype], region: Region,
         is_pow2: bool) -> tuple[np.ndarray, np.ndarray | None]:
    """A tensor's numbers, and its scales if it becomes FP8."""
    place = tensor.place
    codes = f"{place.leaf}.codes" in leaves
    out = np.empty(place.shape, tensor.dtype)
    scales = None
    if tensor.dtype == FP8:
        form = leaves.get(f"{place.leaf}.scales", np.dtype(np.float32))
        scales = np.empty(scale_shape(place.shape), form)
    for start, stop in pieces.spans(place, place.shape[-1] * 4):
        blocks = slice(start // BLOCK, -(-stop // BLOCK))
        if codes:
            rows, by_block = (
                pieces.released(p, region(p.leaf, p.index(s.start, s.stop)))
                for p, s in zip(held(place), (slice(start, stop), blocks))
            )
            pieces.refuse_nan(rows, place.leaf)
            if scales is None:
                rows = pieces.dequantize(rows, by_block)
            else:
                scales[blocks] = by_block
        else:
            rows = pieces.released(place, region(place.leaf, place.index(start, stop)))
            pieces.refuse_nan(rows, place.leaf)
            if scales is not None:
                rows, scales[blocks] = pieces.quantize(rows, is_pow2)
        out[start:stop] = rows.astype(np.float32) if rows.dtype != out.dtype else rows
    return out, scales


def write(folder: Target, tensors: list[Output], leaves: Mapping[str, np.dtype], region: Region,
          config: dict[str, Any], extras: list[Path], is_pow2: bool, progress: Progress) -> None:
    """Write everything; `extras` are files that are copied as they are."""
    cut = shards(tensors)
    names = [f"model-{i + 1:05d}-of-{len(cut):05d}.safetensors" for i in range(len(cut))]
    total = sum(t.nbytes for t in tensors)

    def left() -> int:
        shards_left = sum(t.nbytes for name, part in zip(names, cut) for t in part
                          if not (folder.partial / name).exists())
        return shards_left + sum(p.stat().st_size for p in extras)

    done = 0
    with folder.written(left) as partial:
        for name, part in zip(names, cut):
            if not (partial / name).exists():
                shard = _make_shard(part, leaves, region, is_pow2, progress, done, total)
                files.write_file(partial / name, shard)
            done += sum(t.nbytes for t in part)
            progress(done, total)
        weight_map = {t.name: name for name, part in zip(names, cut) for t in part}
        disk.write_json(
            partial / files.INDEX,
            {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))},
        )
        disk.write_json(partial / files.CONFIG, config)
        for path in extras:
            side.copy(path, partial / path.name)


def _make_shard(part: list[Output], leaves: Mapping[str, np.dtype], region: Region, is_pow2: bool,
                progress: Progress, done: int, total: int) -> dict[str, np.ndarray]:
    """The tensors of a shard by name; `done` bytes were written before."""
    made: dict[str, np.ndarray] = {}
    for tensor in part:
        if not tensor.is_scale:
            made[tensor.name], scales = make(tensor, leaves, region, is_pow2)
            if scales is not None:
                made[tensor.name + SCALE] = scales
        done += tensor.nbytes
        progress(done, total)
    return made
