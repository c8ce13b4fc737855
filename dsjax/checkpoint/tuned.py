"""Weights of a run that learns a part of a model, merged into those it began from when read.

    W + scale A B        of adapters
    w[place[e]]          of experts that learn

A checkpoint of such a run holds the part alone. `Merged` reads the frozen weights and the part a
box at a time and gives the sum, rounded once to bfloat16 where the frozen matrix is narrower than
float32 and no more is asked for. `in_fp8` holds matrices in 8 bits, as a run that
asked for it has computed with them: the same codes whoever reads.

Axes: K summed channels, N columns, r rank.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import ml_dtypes
import numpy as np

from dsjax import params as trees
from dsjax.checkpoint import reader
from dsjax.checkpoint.boxes import Index
from dsjax.checkpoint.reader import Leaf, Weights
from dsjax.checkpoint.run_weights import RunWeights
from dsjax.config.model import ModelConfig
from dsjax.config.run import RunConfig
from dsjax.model import transformer, tuned
from dsjax.numerics import scaled
from dsjax.params import Spec

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
FP8 = np.dtype(ml_dtypes.float8_e4m3fn)


class Merged:
    """The model that a run has made of the weights it began from, and of what it has learnt."""

    def __init__(self, base: Weights, learnt: RunWeights, run: RunConfig,
                 is_wide: bool = False) -> None:
        """base: the frozen weights as the run held them; learnt: its checkpoint's part.

        is_wide: merged matrices are float32, whatever the frozen ones are.
        """
        self.cfg, self._base, self._learnt, self._run = run.model, base, learnt, run
        self.manifest, self.where = learnt.manifest, learnt.where
        self._specs = dict(trees.paths(transformer.specs(run.model)))
        self._wide = reader.as_dtype(base, "float32")
        self.leaves: dict[str, Leaf] = {}
        changed = {_named(name, self._specs) for name in learnt.leaves}
        for name in self._specs:
            if name in changed:
                there, wide = base.leaves.get(name), self._wide.leaves[name]
                is_narrow = there is None or there.dtype.itemsize < 4
                own = BFLOAT16 if is_narrow and not is_wide else wide.dtype
                self.leaves[name] = Leaf(wide.shape, own, wide.chunk)
                continue
            for part in (name, f"{name}.codes", f"{name}.scales"):
                if part in base.leaves:
                    self.leaves[part] = base.leaves[part]
        self._changed = changed
        self._whole = functools.lru_cache(maxsize=4)(self._read_whole)
        self._places = None if run.experts is None else tuned.places(run)

    def read(self, name: str, index: Index) -> np.ndarray:
        """Return the numbers in a box of an array, merged and rounded to its dtype."""
        if name not in self._changed:
            return self._base.read(name, index)
        frozen = self._wide.read(name, index)
        merged = (frozen + self._added(name, index) if self._places is None else
                  self._exchanged(name, index, np.array(frozen)))
        return merged.astype(self.leaves[name].dtype, copy=False)

    def _added(self, name: str, index: Index) -> np.ndarray:
        """scale A B within a box."""
        spec, lora = self._specs[name], self._run.lora
        assert lora is not None, "what is added is of adapters"
        a, b = (self._whole(f"{name}.{part}") for part in ("a", "b"))
        lead, split = index[: spec.batch_dims], spec.batch_dims + spec.contract_dims
        rows, columns = a[(*lead, *index[spec.batch_dims : split])], b[
            (*lead, slice(None), *index[split:])]
        batch = rows.shape[: spec.batch_dims]
        product = rows.reshape(*batch, -1, lora.rank) @ columns.reshape(*batch, lora.rank, -1)
        shape = tuple(s.stop - s.start for s in index)
        return (np.float32(lora.scale) * product).reshape(shape)

    def _exchanged(self, name: str, index: Index, frozen: np.ndarray) -> np.ndarray:
        """A box of experts, those that learn in place of the frozen."""
        assert self._places is not None, "experts have places"
        layers, experts, *inner = index
        for i, layer in enumerate(range(layers.start, layers.stop)):
            for j, expert in enumerate(range(experts.start, experts.stop)):
                at = int(self._places[layer, expert])
                if at >= 0:
                    box = (slice(layer, layer + 1), slice(at, at + 1), *inner)
                    frozen[i, j] = self._learnt.read(name, box)[0, 0]
        return frozen

    def _read_whole(self, name: str) -> np.ndarray:
        """An adapter's matrix, which is small."""
        shape = self._learnt.leaves[name].shape
        return self._learnt.read(name, tuple(slice(0, n) for n in shape)).astype(np.float32)


def _named(name: str, specs: Mapping[str, Spec]) -> str:
    """The matrix that a leaf of what is learnt belongs to."""
    return name if name in specs else name.rpartition(".")[0]


class _Fp8:
    """Weights whose matrices rest in 8 bits, the others in bfloat16; see `in_fp8`."""

    def __init__(self, weights: Weights) -> None:
        self.cfg, self._weights = weights.cfg, weights
        self._specs = dict(trees.paths(transformer.specs(weights.cfg)))
        self._narrow = reader.as_dtype(weights, "bfloat16")
        self._wide = reader.as_dtype(weights, "float32")
        self.leaves: dict[str, Leaf] = {}
        for name, spec in self._specs.items():
            if f"{name}.codes" in weights.leaves:
                for part in ("codes", "scales"):
                    self.leaves[f"{name}.{part}"] = weights.leaves[f"{name}.{part}"]
            elif spec.is_product:
                codes, scales, _ = scaled.resting_shapes(spec)
                one = (1,) * spec.batch_dims
                self.leaves[f"{name}.codes"] = Leaf(codes, FP8, (*one, *codes[spec.batch_dims :]))
                self.leaves[f"{name}.scales"] = Leaf(
                    scales, np.dtype(np.float32), (*one, *scales[spec.batch_dims :]))
            else:
                self.leaves[name] = self._narrow.leaves[name]
        self._quantized = functools.lru_cache(maxsize=4)(self._quantize)

    def read(self, name: str, index: Index) -> np.ndarray:
        if name in self._specs:
            return self._narrow.read(name, index)
        if name in self._weights.leaves:
            return self._weights.read(name, index)
        owner, _, part = name.rpartition(".")
        batch = self._specs[owner].batch_dims
        out = np.empty([s.stop - s.start for s in index], self.leaves[name].dtype)
        for at in np.ndindex(*out.shape[:batch]):
            here = tuple(s.start + i for s, i in zip(index, at))
            out[at] = self._quantized(owner, here)[part == "scales"][tuple(index[batch:])]
        return out

    def _quantize(self, name: str, at: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        """Codes and scales of one matrix."""
        spec = self._specs[name]
        codes, _, tile = scaled.resting_shapes(spec)
        inner = spec.shape[spec.batch_dims :]
        box = (*(slice(i, i + 1) for i in at), *(slice(0, n) for n in inner))
        values = self._wide.read(name, box).reshape(codes[spec.batch_dims :])
        made = _program(tile)(values)
        return np.asarray(made.codes), np.asarray(made.scales)


@functools.cache
def _program(tile: tuple[int, ...]) -> Any:
    return jax.jit(functools.partial(scaled.quantize, tile=tile))


def in_fp8(weights: Weights) -> Weights:
    """View weights with every matrix of a product in codes and scales, and the rest in bfloat16.

    Matrices that rest in 8 bits already stay as they are; a router's bias is float32.
    """
    return _Fp8(weights)


class Described:
    """Weights that are only described: the arrays of a model, of which none is read."""

    def __init__(self, cfg: ModelConfig) -> None:
        """Every array whole and in float32."""
        self.cfg = cfg
        self.leaves: Mapping[str, Leaf] = {
            name: Leaf(spec.shape, np.dtype(np.float32), spec.shape)
            for name, spec in trees.paths(transformer.specs(cfg))}

    def read(self, name: str, index: Index) -> np.ndarray:
        """Refuse: there are no numbers."""
        raise AssertionError(f"{name} is described, not there")


class _Bits:
    """Weights whose 8-bit codes are unsigned integers of the same bits; see `bits`."""

    def __init__(self, weights: Weights) -> None:
        self.cfg, self._weights = weights.cfg, weights
        self.leaves = {name: dataclasses.replace(leaf, dtype=np.dtype(np.uint8))
                       if name.endswith(".codes") else leaf
                       for name, leaf in weights.leaves.items()}

    def read(self, name: str, index: Index) -> np.ndarray:
        values = self._weights.read(name, index)
        return values.view(self.leaves[name].dtype) if name.endswith(".codes") else values


def bits(weights: Weights) -> Weights:
    """View weights with codes as bits, as a scan over layers wants them (`precision.as_bits`)."""
    return _Bits(weights)


def held(weights: Weights, form: str) -> Weights:
    """View weights as a run holds those that it freezes; form: see `config.sft.Resting`."""
    return in_fp8(weights) if form == "fp8" else reader.as_dtype(weights, form)
