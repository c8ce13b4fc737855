"""An open checkpoint, read a box at a time: one form for every source of weights.

`Weights` is a model's config, the arrays that hold its parameters, and `read(name, index)`. Sources
are a released folder (`released.read`), a run folder (`checkpoint.run_weights`) and parameters on
devices (`OnDevices`); `sink` streams any of them onto devices, `released.write` and
`released.convert` into files.

A matrix that rests in FP8 is two arrays, `X.codes` and `X.scales` (`numerics.scaled`), at rest as
released: [..., K, N], or [..., K, 2, F] for gate and up. `as_dtype` is a view of any weights in
which such a matrix is the array X again. It reads as the official code does (DeepSeek-V3,
inference/kernel.py, weight_dequant): float32(code) * scale of its 128x128 block, rounded once more
if another dtype than float32 is asked for.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import ml_dtypes
import numpy as np

from dsjax import params as trees
from dsjax.checkpoint.boxes import Index, region
from dsjax.config.model import ModelConfig
from dsjax.errors import UserError
from dsjax.model import transformer
from dsjax.model.transformer import TransformerParams
from dsjax.numerics import scaled
from dsjax.numerics.scaled import Scaled
from dsjax.params import Spec

CHUNK = 16 << 20
"""Bytes that are read at once, about."""
WORKERS = 2  # chunks made at once; reading, transposing and widening release the interpreter

WIDTHS = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
DTYPES = (*WIDTHS, "stored", "fp8", "dequantized")


@dataclass(frozen=True)
class Leaf:
    """One array of a checkpoint; `chunk` is the box in which it is cheap to read.

    Chunks lie on a regular grid, are about 16 MB, and smaller at the ends of dims.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    chunk: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of all of it."""
        return math.prod(self.shape) * self.dtype.itemsize

    def chunks(self) -> Iterator[Index]:
        """Boxes that cover the array, each once."""
        starts = (range(0, n, step) for n, step in zip(self.shape, self.chunk))
        for at in itertools.product(*starts):
            yield tuple(slice(i, min(i + step, n))
                        for i, step, n in zip(at, self.chunk, self.shape))


class Weights(Protocol):
    """The parameters of a model in a checkpoint that is open."""

    @property
    def cfg(self) -> ModelConfig:
        """Config of the model that these are parameters of."""

    @property
    def leaves(self) -> Mapping[str, Leaf]:
        """Arrays by dotted name in `TransformerParams`; `X.codes`, `X.scales` where X is FP8."""

    def read(self, name: str, index: Index) -> np.ndarray:
        """Return the numbers in a box of an array; several threads may read at once."""


class OnDevices:
    """Parameters in memory as `Weights`; `Scaled` leaves are two arrays."""

    def __init__(self, cfg: ModelConfig, params: TransformerParams) -> None:
        """Refuse parameters whose names and shapes are not those of the config."""
        self.cfg, self._arrays = cfg, _arrays(cfg, params)
        self.leaves: Mapping[str, Leaf] = {
            name: Leaf(a.shape, np.dtype(a.dtype), a.shape) for name, a in self._arrays.items()}

    def read(self, name: str, index: Index) -> np.ndarray:
        """Return the numbers in a box, from whichever devices hold them."""
        return region(self._arrays[name], index)


class _AsDtype:
    """Weights in one dtype, FP8 dequantized; None is each array's own, bfloat16 for FP8."""

    def __init__(self, weights: Weights, dtype: np.dtype | None) -> None:
        self._weights = weights
        self.cfg, self._specs = weights.cfg, dict(trees.paths(transformer.specs(weights.cfg)))
        self.leaves: dict[str, Leaf] = {}
        for name, spec in self._specs.items():
            there = weights.leaves.get(name)
            wanted = dtype or (there.dtype if there else WIDTHS["bfloat16"])
            if dtype and spec.role == "router_bias":
                # It is added to affinities that differ by less than bfloat16 keeps.
                wanted = WIDTHS["float32"]
            chunk = there.chunk if there else _chunk(spec, wanted)
            self.leaves[name] = Leaf(spec.shape, wanted, chunk)

    def read(self, name: str, index: Index) -> np.ndarray:
        wanted = self.leaves[name].dtype
        if name in self._weights.leaves:
            values = self._weights.read(name, index)
            if values.dtype == wanted:
                return values
            return values.astype(np.float32).astype(wanted, copy=False)
        return self._dequantized(name, index).astype(wanted, copy=False)

    def _dequantized(self, name: str, index: Index) -> np.ndarray:
        """A box of a matrix that rests in FP8, in float32."""
        spec = self._specs[name]
        _, _, tile = scaled.resting_shapes(spec)
        batch, rest = index[: spec.batch_dims], index[spec.batch_dims :]
        split, sizes = spec.contract_dims, spec.shape[spec.batch_dims :]
        if spec.parts > 1:  # [K, parts, F] at rest too
            inner, cut = rest, tuple(slice(0, s.stop - s.start) for s in rest)
            shape = tuple(s.stop - s.start for s in rest)
        else:
            groups = ((rest[:split], sizes[:split]), (rest[split:], sizes[split:]))
            inner = tuple(_flat(*group) for group in groups)
            cut, shape = (), ()
            for box, dims in groups:
                cut += (slice(0, box[0].stop - box[0].start), *box[1:])
                shape += (box[0].stop - box[0].start, *dims[1:])
        by_tile = tuple(slice(s.start // t, -(-s.stop // t)) for s, t in zip(inner, tile))
        codes = self._weights.read(f"{name}.codes", (*batch, *inner))
        scales = self._weights.read(f"{name}.scales", (*batch, *by_tile))
        wide = dequantize(codes, scales, tile, tuple(s.start for s in inner))
        lead = tuple(s.stop - s.start for s in batch)
        return wide.reshape(*lead, *shape)[(*(slice(None) for _ in lead), *cut)]


class _Part:
    """The arrays of some weights that a model of another config has."""

    def __init__(self, weights: Weights, cfg: ModelConfig, leaves: Mapping[str, Leaf]) -> None:
        self.cfg, self.leaves, self.read = cfg, leaves, weights.read


def as_dtype(weights: Weights, dtype: str) -> Weights:
    """View weights in another dtype.

    `float32` or `bfloat16` is that of all arrays but the router's bias, which is float32. The
    others leave arrays as they are: `dequantized` has FP8 in bfloat16, `stored` keeps it, and so
    does `fp8`, which refuses weights without any.
    """
    if dtype not in DTYPES:
        raise UserError(f"the dtype {dtype!r} is not a choice; use one of {', '.join(DTYPES)}")
    if dtype in WIDTHS or dtype == "dequantized":
        return _AsDtype(weights, WIDTHS.get(dtype))
    if dtype == "fp8" and not any(name.endswith(".codes") for name in weights.leaves):
        raise UserError("the checkpoint has no FP8 matrices to keep; use --dtype bfloat16 or "
                        "stored")
    return weights


def of_model(weights: Weights, cfg: ModelConfig, where: str) -> Weights:
    """View the part of weights that a model of this config has; refuse another model's.

    `where` names the checkpoint in errors.
    """
    remedy = "use the config it was written with, or other weights"
    part: dict[str, Leaf] = {}
    for name, spec in trees.paths(transformer.specs(cfg)):
        wanted = {name: spec.shape}
        if f"{name}.codes" in weights.leaves:
            codes, scales, _ = scaled.resting_shapes(spec)
            wanted = {f"{name}.codes": codes, f"{name}.scales": scales}
        for one, shape in wanted.items():
            if one not in weights.leaves:
                raise UserError(f"{where} has no {one}, which this config needs; {remedy}")
            found = weights.leaves[one]
            if found.shape != shape:
                raise UserError(
                    f"{where} is of another model: {one} is {found.dtype}{list(found.shape)} there "
                    f"and {list(shape)} in this config; {remedy}")
            part[one] = found
    return _Part(weights, cfg, part)


def tree(cfg: ModelConfig, arrays: Mapping[str, Any]) -> TransformerParams:
    """Build the parameter classes from arrays by name; `X.codes` and `X.scales` are a Scaled."""
    def leaf(path: tuple, spec: Spec) -> Any:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        if name in arrays:
            return arrays[name]
        return Scaled(arrays[f"{name}.codes"], arrays[f"{name}.scales"],
                      scaled.resting_shapes(spec)[2])

    return jax.tree_util.tree_map_with_path(leaf, transformer.specs(cfg), is_leaf=trees.is_spec)


def read_ahead(weights: Weights,
               boxes: Iterator[tuple[str, Index]]) -> Iterator[tuple[str, Index, np.ndarray]]:
    """Read boxes in order; the next few are made meanwhile by threads."""
    waiting: list[tuple[str, Index, Future[np.ndarray]]] = []
    with ThreadPoolExecutor(WORKERS, thread_name_prefix="weights") as pool:
        try:
            for name, index in boxes:
                waiting.append((name, index, pool.submit(weights.read, name, index)))
                if len(waiting) > WORKERS:
                    name, index, made = waiting.pop(0)
                    yield name, index, made.result()
            while waiting:
                name, index, made = waiting.pop(0)
                yield name, index, made.result()
        finally:
            for *_, made in waiting:
                made.cancel()


def dequantize(codes: np.ndarray, scales: np.ndarray, tile: tuple[int, ...],
               start: tuple[int, ...] | None = None) -> np.ndarray:
    """float32(codes) * the scale of each tile.

    codes [..., n0, ..., n], of which `tile` cuts the last dims; scales one a tile that the codes
    meet. start: where in the whole array the codes begin, for each dim that is cut.
    """
    out = codes.astype(np.float32)
    factors = scales.astype(np.float32)
    first, last = (0, 0) if start is None else (start[0] % tile[0], start[-1] % tile[-1])
    lead = (slice(None),) * (codes.ndim - len(tile))
    columns = (np.arange(codes.shape[-1]) + last) // tile[-1]
    for i in range(factors.shape[len(lead)]):
        rows = slice(max(0, i * tile[0] - first), (i + 1) * tile[0] - first)
        by_column = factors[(*lead, slice(i, i + 1))][..., columns]
        out[(*lead, rows)] *= by_column
    return out


def _flat(box: Index, dims: tuple[int, ...]) -> slice:
    """The run of a flattened group of dims that holds a box of it: whole but for the first dim."""
    inner = math.prod(dims[1:])
    return slice(box[0].start * inner, box[0].stop * inner)


def _chunk(spec: Spec, dtype: np.dtype) -> tuple[int, ...]:
    """A box of about 16 MB: of one matrix, all that a product sums over, as many columns as fit."""
    columns = spec.batch_dims + spec.contract_dims
    box = [1] * spec.batch_dims + list(spec.shape[spec.batch_dims :])
    if spec.parts > 1:
        box[columns], columns = 1, columns + 1
    box[columns] = 1
    fit = CHUNK // (math.prod(box) * dtype.itemsize)
    box[columns] = max(1, min(spec.shape[columns], fit))
    return tuple(box)


def _arrays(cfg: ModelConfig, params: TransformerParams) -> dict[str, Any]:
    """Arrays by dotted name, `X.codes` and `X.scales` for a Scaled; shapes must be the specs'."""
    found: dict[str, Any] = {}
    specs = transformer.specs(cfg)
    mine: Any = jax.tree.structure(params, is_leaf=lambda leaf: isinstance(leaf, Scaled))
    if mine != jax.tree.structure(specs, is_leaf=trees.is_spec):
        raise ValueError(f"the parameters are not those of the config: they are {mine}"[:300])

    def take(path: tuple, spec: Spec, leaf: Any) -> None:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        wanted, got = {name: spec.shape}, {name: leaf}
        if isinstance(leaf, Scaled):
            codes, scales, _ = scaled.resting_shapes(spec)
            wanted = {f"{name}.codes": codes, f"{name}.scales": scales}
            got = {f"{name}.codes": leaf.codes, f"{name}.scales": leaf.scales}
        for part, shape in wanted.items():
            if tuple(np.shape(got[part])) != shape:
                raise ValueError(f"{part} has the shape {np.shape(got[part])}, but the config "
                                 f"means {shape}; save with the config of these parameters")
        found.update(got)

    jax.tree_util.tree_map_with_path(take, specs, params, is_leaf=trees.is_spec)
    return found
