"""A run folder's newest readable checkpoint as `Weights`: its parameters, or their average."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import ml_dtypes
import numpy as np

from dsjax.checkpoint import files, multihost
from dsjax.checkpoint.arrays import Arrays
from dsjax.checkpoint.boxes import Index
from dsjax.checkpoint.manifest import Manifest, read_with_sizes
from dsjax.checkpoint.reader import Leaf
from dsjax.checkpoint.store import ARRAYS, CHECKPOINTS
from dsjax.config.model import ModelConfig
from dsjax.errors import UserError

Say = Callable[[str], None]
T = TypeVar("T")


class RunWeights:
    """A subtree of the state in a checkpoint, `params` or `ema`: at its root or one level down."""

    def __init__(self, manifest: Manifest, where: Path, cfg: ModelConfig, which: str) -> None:
        """Open the checkpoint in `where`, which must stay there while it is read."""
        self.cfg, self.manifest, self.where = cfg, manifest, where
        self._prefix, self._arrays = _prefix_of(manifest, which, where), Arrays(where / ARRAYS)
        self.leaves: Mapping[str, Leaf] = {
            name.removeprefix(self._prefix): self._leaf(name)
            for name in manifest.leaves if name.startswith(self._prefix)}

    def read(self, name: str, index: Index) -> np.ndarray:
        """Return the numbers in a box of an array, as stored."""
        try:
            return self._arrays.read(self._prefix + name, index)
        except ValueError as error:  # tensorstore's
            raise self._unreadable(error) from error

    def _leaf(self, name: str) -> Leaf:
        """Shape and dtype of an array by the manifest, and the box it is stored in."""
        shape, dtype = self.manifest.leaves[name]
        try:
            chunk = self._arrays.leaf(name).chunk
        except ValueError as error:
            raise self._unreadable(error) from error
        return Leaf(shape, np.dtype(getattr(ml_dtypes, dtype, dtype)), chunk)

    def _unreadable(self, error: ValueError) -> UserError:
        said = (str(error).splitlines() or [type(error).__name__])[0][:200]
        return UserError(f"{self.where} is as it was written but cannot be read ({said}); use the "
                         "versions of jax and orbax that wrote it")


def read(run: Path, cfg: ModelConfig, use: Callable[[RunWeights], T], *, say: Say = print,
         which: str = "params") -> T:
    """Return what `use` makes of the weights in a run's newest checkpoint that is as written.

    They are open while `use` runs, which no writer disturbs; several processes read the same ones.
    Nothing in the folder is changed. `say` gets a sentence about each damaged checkpoint that is
    passed over.
    """
    return multihost.read(run.absolute() / CHECKPOINTS, say,
                          lambda manifest, where: use(RunWeights(manifest, where, cfg, which)))


def look(run: Path, cfg: ModelConfig, use: Callable[[RunWeights], T], which: str = "params") -> T:
    """Return what `use` makes of a run's weights when it reads none of their numbers.

    They are those of the newest checkpoint that is whole by the sizes of its files, which `read`
    may still find damaged. One process calls this.
    """
    folder = run.absolute() / CHECKPOINTS
    with multihost.newest(folder, _silent, is_ours=False, check=read_with_sizes) as manifest:
        return use(RunWeights(manifest, folder / files.name(manifest.step), cfg, which))


def _silent(sentence: str) -> None:
    """Say nothing: whoever reads the numbers says what is damaged."""


def _prefix_of(manifest: Manifest, which: str, where: Path) -> str:
    """The beginning of the names of a subtree's leaves."""
    parts = (name.split(".") for name in manifest.leaves)
    found = {".".join(p[: p.index(which) + 1]) + "." for p in parts if which in p[:2]}
    if len(found) != 1:
        have = "no" if not found else "more than one"
        raise UserError(
            f"{where} holds {have} {which!r}; choose another run, or 'params' where no average "
            "was kept (--optimizer.ema-decay)"
        )
    return found.pop()
