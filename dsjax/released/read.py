"""A released folder as `Weights`: every tensor has a place, or is refused by name, before reading.

Every place has its tensor, with the shape and a dtype that fit. Two things may be absent: the MTP
modules' copies of embedding and head, and the modules themselves, which many conversions drop while
the config still counts them. Skipped modules are still checked for unknown tensors.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dsjax import params
from dsjax.checkpoint import reader
from dsjax.checkpoint.boxes import Index, meet, relative
from dsjax.checkpoint.reader import CHUNK, WIDTHS, Leaf, Weights
from dsjax.config.loss import LossConfig
from dsjax.config.model import MLAConfig, ModelConfig
from dsjax.errors import UserError
from dsjax.model import transformer
from dsjax.numerics import scaled
from dsjax.ops import rope
from dsjax.released import config, files, rows
from dsjax.released.files import Tensor
from dsjax.released.names import BLOCK, SCALE, Placement, at_rest, placements, scale_shape
from dsjax.released.rows import E8M0, FP8

ENOUGH = 1000  # missing tensors, after which a config is plainly another's
DIRECT_QUERY = "model.layers.0.self_attn.q_proj.weight"  # is there without query compression
Say = Callable[[str], Any]
Found = dict[Placement, tuple[Tensor, Tensor | None]]
"""The tensor of a place, and its scales where it is FP8."""


@dataclass(frozen=True)
class Source:
    """A tensor at its place in a leaf; `scales` of an FP8 matrix among others of another dtype."""

    place: Placement
    tensor: Tensor
    scales: Tensor | None = None


class ReleasedWeights:
    """The parameters in a released folder, as they are there."""

    def __init__(self, cfg: ModelConfig, found: Found) -> None:
        """Order the tensors by leaf.

        A leaf whose tensors are of several dtypes is float32, which holds all of them exactly;
        `mixed` names one such leaf and says why.
        """
        self.cfg = cfg
        self.mixed: str | None = None
        self._sources = _by_leaf(found)
        self.leaves: dict[str, Leaf] = {}
        for name, spec in params.paths(transformer.specs(cfg)):
            codes, scales, _ = scaled.resting_shapes(spec)
            shapes = {name: spec.shape, f"{name}.codes": codes, f"{name}.scales": scales}
            for part, shape in shapes.items():
                if part in self._sources:
                    self.leaves[part] = self._leaf(part, shape)

    def read(self, name: str, index: Index) -> np.ndarray:
        """Return the numbers in a box of an array, from the tensors that it meets."""
        sources = self._sources[name]
        place = next(iter(sources.values())).place
        stacked = index[: len(place.at)]
        if place.part is not None:
            stacked += (index[len(place.at) + place.contract],)
        out = np.empty([s.stop - s.start for s in index], self.leaves[name].dtype)
        for key in itertools.product(*(range(s.start, s.stop) for s in stacked)):
            box, values = _read(sources[key], index, out.dtype)
            inside = meet(index, box)
            assert inside is not None, "the tensor of a key lies in every box with that key"
            out[relative(inside, index)] = values[relative(inside, box)]
        return out

    def _leaf(self, name: str, shape: tuple[int, ...]) -> Leaf:
        """Shape and dtype of an array, and the box that is read at once of its first tensor."""
        sources = list(self._sources[name].values())
        place, tensor = sources[0].place, sources[0].tensor
        dtypes = sorted({str(s.tensor.dtype) for s in sources})
        dtype = tensor.dtype
        if len(dtypes) > 1:
            dtype = WIDTHS["float32"]
            self.mixed = self.mixed or f"{name} in {' and in '.join(dtypes)}"
        box = place.index(0, min(rows.step(place, tensor.row_bytes), place.shape[0]))
        return Leaf(shape, dtype, tuple(s.stop - s.start for s in box))


def _by_leaf(found: Found) -> dict[str, dict[tuple[int, ...], Source]]:
    """The tensors of every leaf by their place; FP8 as it is where a leaf has nothing else."""
    alone = {place.leaf for place in found}
    alone -= {place.leaf for place, (_, scales) in found.items() if scales is None}
    made: dict[str, dict[tuple[int, ...], Source]] = {}
    for place, (tensor, scales) in found.items():
        if scales is None or place.leaf not in alone:
            made.setdefault(place.leaf, {})[place.key] = Source(place, tensor, scales)
            continue
        for part, one in zip(at_rest(place), (tensor, scales)):
            made.setdefault(part.leaf, {})[part.key] = Source(part, one)
    return made


def _read(source: Source, index: Index, dtype: np.dtype) -> tuple[Index, np.ndarray]:
    """The rows of a tensor that a box meets, as they lie in the leaf, and the box they fill."""
    place, tensor = source.place, source.tensor
    start, stop = place.rows(index)
    values = tensor.rows(start, stop)
    rows.refuse_nan(values, f"{tensor.file}: {tensor.name}")
    if source.scales is not None:
        scales = source.scales.rows(start // BLOCK, -(-stop // BLOCK))
        rows.refuse_nan(scales, f"{tensor.file}: {source.scales.name}")
        values = reader.dequantize(values, scales, (BLOCK, BLOCK), (start, 0))
    return place.index(start, stop), rows.to_leaf(place, values.astype(dtype, copy=False), start)


@dataclass(frozen=True)
class Opened:
    """A released folder that is open: its weights, and what its config says besides."""

    weights: Weights
    loss: LossConfig
    remarks: tuple[str, ...]
    """Sentences about what was assumed."""
    copies: tuple[tuple[Tensor, Tensor], ...]
    """Tensors of MTP modules, and those of the main model that they must be equal to."""

    def check(self) -> None:
        """Read the MTP modules' embeddings and heads, and refuse those that are not shared."""
        for copy, main in self.copies:
            _compare(copy, main)


def open_folder(folder: Path, dtype: str = "stored", mtp: bool | None = None,
                is_read_again: bool = False) -> Opened:
    """Match a checkpoint's tensors with a model's parameters; see `hf.load` and `Tensor`."""
    if dtype not in reader.DTYPES:
        raise UserError(f"the dtype {dtype!r} is not a choice; use one of "
                        f"{', '.join(reader.DTYPES)}")
    data = files.read_json(folder / files.CONFIG)
    where = str(folder / files.CONFIG)
    released = config.read(data, where)
    tensors = files.open_checkpoint(folder)
    if is_read_again:
        tensors = {n: dataclasses.replace(t, is_read_again=True) for n, t in tensors.items()}
    if "q_lora_rank" not in data and DIRECT_QUERY in tensors:  # the tensors say that it is null
        released = config.read(data | {"q_lora_rank": None}, where)
    counted = released.model.layers + released.model.mtp_depth
    if counted > len(tensors):
        raise UserError(f"{where} counts {counted:,} layers with those of MTP, and the checkpoint "
                        f"has {len(tensors):,} tensors in all; correct the config")
    cfg, remarks = _with_mtp(released.model, tensors, mtp)
    found, copies = _match(folder, cfg, dict(tensors), released.model)
    weights = ReleasedWeights(cfg, found)
    if dtype not in WIDTHS and weights.mixed:
        raise UserError(f"{folder} has {weights.mixed}, which one array cannot keep; give a dtype, "
                        "such as --dtype bfloat16")
    return Opened(reader.as_dtype(weights, dtype), released.loss,
                  (*remarks, *released.remarks), tuple(copies))


def _compare(copy: Tensor, main: Tensor) -> None:
    """Refuse an MTP module's embedding or head that is not the main model's."""
    if copy.dtype != main.dtype:
        raise UserError(f"{copy.file}: {copy.name} is {copy.dtype}, {main.name} {main.dtype}; "
                        "leave the modules out (--mtp no)")
    step = max(1, CHUNK // max(1, copy.row_bytes))
    for start in range(0, copy.shape[0], step):
        stop = min(start + step, copy.shape[0])
        if copy.rows(start, stop).tobytes() != main.rows(start, stop).tobytes():
            raise UserError(
                f"{copy.file}: {copy.name} differs from {main.name}, but MTP modules share "
                "the main model's; leave the modules out (--mtp no)"
            )


def _with_mtp(cfg: ModelConfig, tensors: dict[str, Tensor],
              mtp: bool | None) -> tuple[ModelConfig, list[str]]:
    """The config with the MTP modules that will be loaded, and what to say about it."""
    first = f"model.layers.{cfg.layers}."
    is_there = any(name.startswith(first) for name in tensors)
    if mtp and not cfg.mtp_depth:
        raise UserError(
            "the checkpoint's config counts no MTP module (num_nextn_predict_layers); get one that "
            "has some, or leave them out (--mtp no)"
        )
    if not cfg.mtp_depth or (mtp is not False and is_there):
        return cfg, []
    bare = dataclasses.replace(cfg, mtp_depth=0)
    if mtp is False:
        return bare, []
    if mtp:
        raise UserError(
            f"the checkpoint has no tensors {first}*, the MTP module its config counts; get one "
            "that has them, or leave it out (--mtp no)"
        )
    remark = (
        f"the config means {cfg.mtp_depth} MTP module(s), but there are no tensors {first}*: "
        "loaded without"
    )
    return bare, [remark]


def _match(
    folder: Path, cfg: ModelConfig, tensors: dict[str, Tensor], released: ModelConfig
) -> tuple[Found, list[tuple[Tensor, Tensor]]]:
    """Each placement's tensor and scales, and the pairs that must be equal; nothing left over."""
    found: Found = {}
    missing, copies = [], []
    whole = dict(tensors)
    for place in placements(cfg):
        tensor = tensors.pop(place.name, None)
        if tensor is None:
            if place.copy_of is None:
                missing.append(place.name)
            if len(missing) > ENOUGH:
                break
            continue
        scales = tensors.pop(place.name + SCALE, None) if tensor.dtype == FP8 else None
        _check(place, tensor, scales)
        if place.copy_of is None:
            found[place] = (tensor, scales)
        elif place.copy_of in whole:
            copies.append((tensor, whole[place.copy_of]))
    if missing:
        raise UserError(
            f"{folder} lacks {_some(missing)}, which its config.json asks for; "
            "download the whole checkpoint, or correct the config"
        )
    if cfg.mtp_depth < released.mtp_depth:
        _drop_mtp(tensors, released)
    left = [name for name, t in tensors.items() if not _is_frequencies(name, t, cfg)]
    if left:
        raise UserError(
            f"{folder} has {_some(left)}, for which a model of its config.json has no place; "
            "correct the config, or remove the tensors"
        )
    return found, copies


def _drop_mtp(tensors: dict[str, Tensor], released: ModelConfig) -> None:
    """Take the tensors of unwanted MTP modules out; they must be as their modules have them."""
    modules = tuple(f"model.layers.{released.layers + i}." for i in range(released.mtp_depth))
    for place in placements(released):
        if place.name in tensors and place.name.startswith(modules):
            tensor = tensors.pop(place.name)
            scales = tensors.pop(place.name + SCALE, None) if tensor.dtype == FP8 else None
            _check(place, tensor, scales)


def _is_frequencies(name: str, tensor: Tensor, cfg: ModelConfig) -> bool:
    """True for the one tensor without a place that may be left: rotary frequencies."""
    if not name.endswith("rotary_emb.inv_freq") or not isinstance(cfg.attention, MLAConfig):
        return False
    expected = rope.frequencies(cfg.rope, cfg.attention.rope_dim)
    if len(tensor.shape) != 1 or tensor.shape != expected.shape:
        return False
    kept = tensor.rows(0, tensor.shape[0]).astype(np.float64)
    # bfloat16 keeps 8 bits, so half of 2^-7; frequencies without YaRN are also in the wild.
    plain = rope.frequencies(dataclasses.replace(cfg.rope, yarn=None), cfg.attention.rope_dim)
    return any(
        kept.shape == f.shape and np.allclose(kept, f, rtol=2.0**-8, atol=0)
        for f in (expected, plain)
    )


def _check(place: Placement, tensor: Tensor, scales: Tensor | None) -> None:
    """Refuse a tensor whose shape or dtype is not its place's."""
    if tensor.shape != place.shape:
        raise UserError(
            f"{tensor.file}: {place.name} has the shape {list(tensor.shape)}, but config.json "
            f"means {list(place.shape)}; correct the config, or get the checkpoint it belongs to"
        )
    if tensor.dtype == E8M0 or (tensor.dtype == FP8 and not place.is_product):
        raise UserError(
            f"{tensor.file}: {place.name} is {tensor.dtype}, but only the matrices of linear "
            "layers may be 8 bits; get the released checkpoint"
        )
    if tensor.dtype != FP8:
        return
    if scales is None:
        raise UserError(
            f"{tensor.file}: {place.name} is FP8 without {place.name}{SCALE}; "
            "download the whole checkpoint"
        )
    expected = scale_shape(place.shape)
    if scales.shape != expected or scales.dtype == FP8:
        raise UserError(
            f"{scales.file}: {scales.name} is {scales.dtype}{list(scales.shape)}, but one scale a "
            f"128x128 block is {list(expected)}; get the released checkpoint"
        )


def _some(names: list[str]) -> str:
    """A few names, and how many more."""
    more = f" and {len(names) - 3} more tensors" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
