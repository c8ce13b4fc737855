"""Writing a released checkpoint from any `Weights`: shards, index and config.

A shard holds at most 256 MB or the largest tensor, and is, twice while it is written, all that is
in memory. Shards that an interrupted run left are kept and the next run goes on after them.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dsjax import disk
from dsjax import params as trees
from dsjax.checkpoint import reader
from dsjax.checkpoint.reader import WIDTHS, Leaf, Weights
from dsjax.checkpoint.sink import Progress
from dsjax.config.loss import LossConfig
from dsjax.config.model import ModelConfig
from dsjax.errors import UserError
from dsjax.model import transformer
from dsjax.released import config as configs
from dsjax.released import files, rows, side
from dsjax.released.names import BLOCK, SCALE, Placement, at_rest, placements, scale_shape
from dsjax.released.rows import BFLOAT16, FP8
from dsjax.released.target import Target

SHARD = 256 << 20


@dataclass(frozen=True)
class Form:
    """The dtypes of a released checkpoint."""

    is_fp8: bool = False
    """Matrices are E4M3 with one scale a 128x128 block, and the rest bfloat16; those that rest in
    FP8 are written as they are. Otherwise they are dequantized."""
    is_ue8m0: bool = False
    """Scales that are made are powers of two, as V3.1's."""
    dtype: str | None = None
    """Dtype of what is not FP8; None leaves arrays as they are."""

    def __post_init__(self) -> None:
        """Refuse what could not be obeyed."""
        if self.dtype is not None and self.dtype not in WIDTHS:
            raise UserError(f"the dtype {self.dtype!r} is not a choice; use "
                            f"{' or '.join(WIDTHS)}")
        if self.is_ue8m0 and not self.is_fp8:
            raise UserError("power-of-two scales (--ue8m0) are of FP8 matrices; ask for fp8 too "
                            "(--fp8)")


@dataclass(frozen=True)
class Template:
    """A released checkpoint without its weights."""

    attributes: dict[str, Any]
    """A config, or the part of one that a ModelConfig has no place for."""
    files: tuple[Path, ...] = ()
    """Tokenizer, generation settings, code."""


def read_template(folder: Path) -> Template:
    """Return all that a released checkpoint is besides its weights."""
    config = files.read_json(folder / files.CONFIG)
    if "model_type" not in config:
        raise UserError(
            f"{folder / files.CONFIG} names no model_type; give the folder of a released "
            "checkpoint"
        )
    return Template(config, tuple(side.extra_files(folder)))


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


def outputs(cfg: ModelConfig, leaves: Mapping[str, Leaf], form: Form) -> Iterator[Output]:
    """List every tensor of the released form of these arrays."""
    specs = dict(trees.paths(transformer.specs(cfg)))
    dtypes = {name: leaf.dtype for name, leaf in leaves.items()}
    is_kept = any(name.endswith(".codes") for name in leaves)
    for place in placements(cfg):
        own = dtypes.get(place.leaf, BFLOAT16)
        if form.is_fp8 and place.is_product:
            scales = dtypes.get(f"{place.leaf}.scales", np.dtype(np.float32))
            shape = scale_shape(place.shape)
            yield Output(place.name, place.shape, FP8, place)
            yield Output(place.name + SCALE, shape, scales, place, is_scale=True)
            continue
        wanted = WIDTHS[form.dtype] if form.dtype else own
        if form.dtype is None and form.is_fp8 and not is_kept:
            wanted = BFLOAT16
        if specs[place.leaf].role == "router_bias":  # never narrowed
            wanted = own if own.itemsize < 4 and form.dtype is None else WIDTHS["float32"]
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


def make(tensor: Output, weights: Weights, wide: Weights,
         is_ue8m0: bool) -> tuple[np.ndarray, np.ndarray | None]:
    """Read a tensor's numbers, and its scales if it is FP8; `wide` are the weights in float32."""
    place = tensor.place
    if tensor.dtype == FP8 and f"{place.leaf}.codes" in weights.leaves:
        codes, scales = (
            rows.to_released(p, weights.read(p.leaf, p.index(0, p.shape[0])))
            for p in at_rest(place))
        rows.refuse_nan(codes, place.leaf)
        rows.refuse_nan(scales, place.leaf)
        return codes, scales
    source = weights if place.leaf in weights.leaves else wide
    out, made = np.empty(place.shape, tensor.dtype), None
    if tensor.dtype == FP8:
        made = np.empty(scale_shape(place.shape), np.float32)
    step = rows.step(place, place.shape[-1] * 4)
    for start in range(0, place.shape[0], step):
        stop = min(start + step, place.shape[0])
        values = rows.to_released(place, source.read(place.leaf, place.index(start, stop)))
        rows.refuse_nan(values, place.leaf)
        if made is not None:
            blocks = slice(start // BLOCK, -(-stop // BLOCK))
            out[start:stop], made[blocks] = rows.quantize(values, is_ue8m0)
        elif values.dtype == out.dtype:
            out[start:stop] = values
        else:
            out[start:stop] = values.astype(np.float32)
    return out, made


@dataclass(frozen=True)
class Export:
    """A released checkpoint to be made."""

    weights: Weights
    form: Form
    template: Template | None = None
    loss: LossConfig | None = None
    """Gives aux_loss_alpha, with which others train on; without it, that of `template`."""

    @functools.cached_property
    def _wide(self) -> Weights:
        return reader.as_dtype(self.weights, "float32")

    def write(self, folder: Target, progress: Progress) -> None:
        """Write everything; see `hf.save`."""
        weights, template = self.weights, self.template or Template({})
        tensors = list(outputs(weights.cfg, weights.leaves, self.form))
        config = configs.write(
            weights.cfg, str(next(t.dtype for t in tensors)), self._scales(tensors),
            template.attributes if self.template else None, self.loss)
        cut = shards(tensors)
        names = [f"model-{i + 1:05d}-of-{len(cut):05d}.safetensors" for i in range(len(cut))]
        total = sum(t.nbytes for t in tensors)

        def left() -> int:
            shards_left = sum(t.nbytes for name, part in zip(names, cut) for t in part
                              if not (folder.partial / name).exists())
            return shards_left + sum(p.stat().st_size for p in template.files)

        done = 0
        with folder.written(left) as partial:
            for name, part in zip(names, cut):
                if not (partial / name).exists():
                    files.write_file(partial / name, self._shard(part, progress, done, total))
                done += sum(t.nbytes for t in part)
                progress(done, total)
            weight_map = {t.name: name for name, part in zip(names, cut) for t in part}
            disk.write_json(
                partial / files.INDEX,
                {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))},
            )
            disk.write_json(partial / files.CONFIG, config)
            for path in template.files:
                side.copy(path, partial / path.name)

    def _shard(self, part: list[Output], progress: Progress, done: int,
               total: int) -> dict[str, np.ndarray]:
        """The tensors of a shard by name; `done` bytes were written before."""
        made: dict[str, np.ndarray] = {}
        for tensor in part:
            if not tensor.is_scale:
                made[tensor.name], scales = make(tensor, self.weights, self._wide,
                                                 self.form.is_ue8m0)
                if scales is not None:
                    made[tensor.name + SCALE] = scales
            done += tensor.nbytes
            progress(done, total)
        return made

    def _scales(self, tensors: list[Output]) -> str | None:
        """The config's name for the form of FP8 scales: those at rest, and those to be made."""
        if not self.form.is_fp8:
            return None
        places = [at_rest(t.place)[1] for t in tensors if t.is_scale]
        kept = [p for p in places if p.leaf in self.weights.leaves]
        are_powers = all(
            _are_powers(self.weights.read(p.leaf, p.index(0, p.shape[0]))) for p in kept)
        if self.form.is_ue8m0 and not are_powers:
            raise UserError(
                "the FP8 matrices are written as they are, and their scales are not powers of two; "
                "leave --ue8m0 out, or convert the checkpoint to bfloat16 first (--dtype bfloat16)"
            )
        return "ue8m0" if (are_powers if kept else self.form.is_ue8m0) else "float"


def _are_powers(scales: np.ndarray) -> bool:
    """True if all scales are powers of two."""
    return bool((np.frexp(scales.astype(np.float32))[0] == 0.5).all())
