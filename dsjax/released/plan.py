"""What loading a released checkpoint will do, decided before a tensor is read.

Every tensor has a place or is named in an error, and every place has its tensor, with the shape and
a dtype that fit. Two things may be absent: the MTP modules' copies of embedding and head, and the
modules themselves, which many conversions drop while the config still counts them. Tensors of
modules that are there but not wanted must be theirs too.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import jax
import ml_dtypes
import numpy as np

from dsjax import params
from dsjax.config.model import MLAConfig, ModelConfig
from dsjax.errors import UserError
from dsjax.model import transformer
from dsjax.model.transformer import TransformerParams
from dsjax.numerics import scaled
from dsjax.numerics.scaled import Scaled
from dsjax.ops import rope
from dsjax.released import config, files
from dsjax.released.config import Released
from dsjax.released.files import Tensor
from dsjax.released.names import SCALE, Placement, held, placements, scale_shape
from dsjax.released.pieces import E8M0, FP8, Source

WIDTHS = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
DTYPES = (*WIDTHS, "stored", "fp8")
ENOUGH = 1000  # missing tensors, after which a config is plainly another's
DIRECT_QUERY = "model.layers.0.self_attn.q_proj.weight"  # is there without query compression


@dataclass(frozen=True)
class Plan:
    """Where every tensor goes, and what there will be."""

    cfg: ModelConfig
    released: Released
    sources: tuple[Source, ...]  # in the order of files
    copies: tuple[tuple[Tensor, Tensor], ...]  # must be equal
    leaves: dict[str, tuple[tuple[int, ...], np.dtype]]
    remarks: tuple[str, ...]

    @property
    def nbytes(self) -> int:
        """Bytes to be read."""
        read = [s.tensor for s in self.sources] + [s.scales for s in self.sources if s.scales]
        return sum(t.nbytes for t in read) + sum(t.nbytes for pair in self.copies for t in pair)


def plan(folder: Path, dtype: str, mtp: bool | None = None) -> Plan:
    """Match a checkpoint's tensors with a model's parameters; see `hf.load`."""
    if dtype not in DTYPES:
        raise UserError(f"the dtype {dtype!r} is not a choice; use one of {', '.join(DTYPES)}")
    data = files.read_json(folder / files.CONFIG)
    where = str(folder / files.CONFIG)
    released = config.read(data, where)
    tensors = files.open_checkpoint(folder)
    if "q_lora_rank" not in data and DIRECT_QUERY in tensors:  # the tensors say that it is null
        released = config.read(data | {"q_lora_rank": None}, where)
    counted = released.model.layers + released.model.mtp_depth
    if counted > len(tensors):
        raise UserError(f"{where} counts {counted:,} layers with those of MTP, and the checkpoint "
                        f"has {len(tensors):,} tensors in all; correct the config")
    cfg, remarks = _with_mtp(released.model, tensors, mtp)
    remarks += released.remarks
    order = {name: i for i, name in enumerate(tensors)}
    found, copies = _match(folder, cfg, dict(tensors), released.model)
    if dtype == "fp8" and not any(t.dtype == FP8 for t, _ in found.values()):
        raise UserError(f"{folder} has no FP8 matrices to keep; use --dtype bfloat16 or "
                        "stored")
    sources = _sources(found, dtype)
    sources.sort(key=lambda s: order[s.tensor.name])
    leaves = _leaves(cfg, sources, folder)
    return Plan(cfg, released, tuple(sources), tuple(copies), leaves, tuple(remarks))


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
) -> tuple[dict[Placement, tuple[Tensor, Tensor | None]], list[tuple[Tensor, Tensor]]]:
    """Each placement's tensor and scales, and the pairs that must be equal; nothing left over."""
    found: dict[Placement, tuple[Tensor, Tensor | None]] = {}
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
    """Whether a tensor without a place may be left: rotary frequencies, which say nothing new."""
    if not name.endswith("rotary_emb.inv_freq") or not isinstance(cfg.attention, MLAConfig):
        return False
    expected = rope.frequencies(cfg.rope, cfg.attention.rope_dim)
    if len(tensor.shape) != 1 or tensor.shape != expected.shape:
        return False
    rows = tensor.rows(0, tensor.shape[0]).astype(np.float64)
    # bfloat16 keeps 8 bits, so half of 2^-7; frequencies without YaRN are also in the wild.
    plain = rope.frequencies(dataclasses.replace(cfg.rope, yarn=None), cfg.attention.rope_dim)
    return any(
        rows.shape == f.shape and np.allclose(rows, f, rtol=2.0**-8, atol=0)
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


def _sources(found: dict[Placement, tuple[Tensor, Tensor | None]], dtype: str) -> list[Source]:
    """What is read into which leaf; FP8 is dequantized unless it is kept."""
    made = []
    for place, (tensor, scales) in found.items():
        if dtype not in WIDTHS and scales is not None:
            codes, by_block = held(place)
            made.append(Source(codes, tensor, None, tensor.dtype))
            made.append(Source(by_block, scales, None, scales.dtype))
            continue
        wanted = WIDTHS.get(dtype, tensor.dtype)
        if place.leaf.endswith("router.bias") and dtype in WIDTHS:
            wanted = WIDTHS["float32"]  # added to affinities that differ by less
        made.append(Source(place, tensor, scales, wanted))
    return made


def _leaves(cfg: ModelConfig, sources: list[Source],
            folder: Path) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """Shape and dtype of every leaf, in tree order."""
    dtypes: dict[str, np.dtype] = {}
    for source in sources:
        leaf = source.place.leaf
        if dtypes.setdefault(leaf, source.dtype) != source.dtype:
            raise UserError(
                f"{folder} has layers of {leaf} in {dtypes[leaf]} and in {source.dtype}, which one "
                "array cannot keep; give a dtype, such as --dtype bfloat16"
            )
    leaves = {}
    for name, spec in params.paths(transformer.specs(cfg)):
        if name in dtypes and f"{name}.codes" in dtypes:
            raise UserError(
                f"{folder} has {name} in FP8 and in {dtypes[name]}, which one array cannot keep; "
                "give a dtype, such as --dtype bfloat16"
            )
        if name in dtypes:
            leaves[name] = (spec.shape, dtypes[name])
            continue
        codes, scales, _ = scaled.resting_shapes(spec)
        leaves[f"{name}.codes"] = (codes, dtypes[f"{name}.codes"])
        leaves[f"{name}.scales"] = (scales, dtypes[f"{name}.scales"])
    return leaves


def tree(cfg: ModelConfig, arrays: dict[str, jax.Array]) -> TransformerParams:
    """The parameter classes from arrays by dotted name; `X.codes` and `X.scales` are a Scaled."""
    specs = transformer.specs(cfg)

    def leaf(path: tuple, spec: params.Spec) -> jax.Array | Scaled:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        if name in arrays:
            return arrays[name]
        _, _, tile = scaled.resting_shapes(spec)
        return Scaled(arrays[f"{name}.codes"], arrays[f"{name}.scales"], tile)

    return jax.tree_util.tree_map_with_path(leaf, specs, is_leaf=params.is_spec)
