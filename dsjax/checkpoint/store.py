"""Checkpoints of a tree of arrays: saved beside the training, restored whole or not at all.

orbax writes the arrays, so that shards are read onto any mesh; `files` decides when a checkpoint
exists and whether it is as written. The tree is stored flat, by dotted names (`params.moe.norm`):
a part of it can be read alone, and no class of the tree, let alone a pickle, is in the file. What
is restored has the classes of the tree it is asked for with.

Several processes save and restore together; the first makes and finishes what all of them write.

Limit: the folder is on a POSIX file system (a rename is atomic) that every process reaches.
"""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dsjax import params as trees
from dsjax.checkpoint import files, multihost
from dsjax.checkpoint import manifest as manifests
from dsjax.checkpoint.manifest import Manifest
from dsjax.checkpoint.orbax_quiet import orbax
from dsjax.checkpoint.plain import plain
from dsjax.errors import UserError
from dsjax.params import Spec

Tree = Any
Say = Callable[[str], None]
CHECKPOINTS, ARRAYS = "checkpoints", "arrays"
TOKENIZER = "tokenizer"  # key of `extra`: the fingerprint of the tokenizer that weights belong to
CHUNK = 16 << 20  # bytes below which a chunk is not worth a read of its own


class StoreError(UserError):
    """A checkpoint could not be written; the sentence says why and what is still there."""


class Store:
    """The checkpoints of one run in one folder; the newest `keep` stay."""

    def __init__(self, folder: Path | str, keep: int, specs: Tree | None = None) -> None:
        """Open a folder, which need not exist, and remove what an interrupted save left in it.

        specs: of the parameters in the state, which say what is stacked, see `_chunked`.
        """
        if keep < 1:
            raise ValueError(f"keep={keep} would leave no checkpoint; choose at least 1")
        self.folder = Path(folder).absolute()
        self.keep = keep
        self._specs: dict[str, Spec] = {} if specs is None else dict(trees.paths(specs))
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        self._is_first = jax.process_index() == 0
        if self._is_first:
            files.tidy(self.folder)

    def save(self, step: int, state: Tree, extra: dict[str, Any], *, prune: bool = True) -> None:
        """Copy `state` to the host and return; a thread writes it, together with `extra` (JSON).

        state: leaves are jax or NumPy arrays, free to be donated or overwritten afterwards. A save
        still under way is waited for, and raises what went wrong with it. prune: when it is
        written, the oldest go; otherwise they wait for `prune`.
        """
        self.wait()
        flat = _flatten(state)
        leaves = {name: (tuple(a.shape), str(a.dtype)) for name, a in flat.items()}
        extra = json.loads(json.dumps(extra))  # a copy, and an early TypeError
        partial = self.folder / f"{files.PARTIAL}{step:08d}"
        try:
            if self._is_first:
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir(parents=True)
            plain = multihost.plain(self.folder)
            multihost.meet()
            _want_room(self.folder, sum(a.nbytes for a in flat.values()))
            host = {k: np.array(a) if _is_host(a) else a for k, a in flat.items()}
            with _chunked(self._specs):
                written = orbax().save_async(plain / partial.name / ARRAYS, host)
        except Exception as error:
            raise self._failed(step, partial, error) from error
        end = (step, partial, written, leaves, extra, self.keep if prune else None)
        self._pending = self._thread.submit(self._finish, *end)

    def prune(self) -> None:
        """Remove all but the newest `keep`, once the save under way is done."""
        if self._is_first:
            self._thread.submit(files.prune, self.folder, self.keep)

    def wait(self) -> None:
        """Return when nothing is being written; raise StoreError if the last save failed."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending.result()

    def latest(self) -> int | None:
        """Step of the newest finished checkpoint."""
        return max(files.steps(self.folder), default=None)

    def restore(self, abstract_state: Tree, say: Say = print) -> tuple[int, Tree, dict[str, Any]]:
        """Read the newest checkpoint that is as written: its step, state and extra.

        abstract_state: a tree of ShapeDtypeStruct or jax arrays, whose shardings are adopted (the
        default is the first device), and NumPy arrays, which stay NumPy. `say` gets one sentence
        about each damaged checkpoint that is passed over; those are moved aside.
        """
        self.wait()
        wanted = _flatten(abstract_state)
        with multihost.agreed(self.folder, say, is_ours=True) as manifest:
            where = self.folder / files.name(manifest.step)
            _match(manifest, wanted, where)
            flat = _read(where, wanted)
        state = jax.tree.unflatten(jax.tree.structure(abstract_state), list(flat.values()))
        return manifest.step, state, manifest.extra

    def close(self) -> None:
        """Finish the save under way and end the thread."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()

    def _finish(self, step: int, partial: Path, written: Any, leaves: Any, extra: Any,
                keep: int | None) -> None:
        """Wait for the bytes, make them a checkpoint, remove the oldest; runs in the thread."""
        try:
            written.result()  # in the first process, when every process has written
            if not self._is_first:
                return
            files.finish(partial, step, leaves, extra)
        except Exception as error:
            raise self._failed(step, partial, error) from error
        if keep is not None:
            files.prune(self.folder, keep)

    def _failed(self, step: int, partial: Path, error: Exception) -> StoreError:
        """Clean up after a failed save and say what happened."""
        if self._is_first:
            files.remove(partial)
        latest = self.latest()
        kept = f"checkpoint {latest} is whole" if latest is not None else "there is none before it"
        return StoreError(
            f"checkpoint {step} could not be written to {self.folder} ({_cause(error)}), {kept}; "
            "make room or choose another --output.folder, then start again"
        )


def _chunked(specs: dict[str, Spec]) -> Any:
    """Context in which orbax stores stacked arrays in chunks of one matrix, which are read alone.

    A leaf whose name ends in a parameter's, as its moments' do, is stacked as the parameter is. An
    array of one chunk is read whole, however little of it is wanted.
    """
    options = orbax().options.ArrayOptions

    def by_matrix(path: Any, leaf: Any) -> Any:
        parts = jax.tree_util.keystr(path, simple=True, separator=".").split(".")
        names = (".".join(parts[i:]) for i in range(len(parts)))
        stacked = next((specs[name].batch_dims for name in names if name in specs), 0)
        if not stacked or leaf.ndim < stacked + 2:
            return None
        size = max(CHUNK, leaf.nbytes // math.prod(leaf.shape[:stacked]))
        return options.Saving.StorageOptions(chunk_byte_size=size,
                                             shard_axes=tuple(range(stacked)))

    saving = options.Saving(scoped_storage_options_creator=by_matrix)
    return orbax().Context(array_options=options(saving=saving))


def extra(run_dir: Path | str, remedy: str | None = None) -> dict[str, Any]:
    """Return the data that a run's newest checkpoint keeps beside its arrays, which are not read.

    remedy: what to do where none is as written, if it is not to give another run.
    """
    folder = Path(run_dir).absolute() / CHECKPOINTS
    with multihost.newest(folder, _silent, is_ours=False, check=manifests.read,
                         remedy=remedy) as manifest:
        return manifest.extra


def tokenizer_of(run_dir: Path | str) -> str | None:
    """Fingerprint of the tokenizer that a run's weights belong to; None where it was not kept."""
    found = extra(run_dir).get(TOKENIZER)
    return found if isinstance(found, str) else None


def _silent(sentence: str) -> None:
    """Say nothing: whoever reads the arrays says what is damaged."""


def _flatten(tree: Tree) -> dict[str, Any]:
    """Leaves by dotted name, in tree order."""
    named = trees.paths(tree)
    flat = dict(named)
    assert len(flat) == len(named), "two leaves of the state have one dotted name"
    for name, leaf in flat.items():
        if not hasattr(leaf, "dtype") or jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.extended):
            raise TypeError(
                f"the leaf {name} is {type(leaf).__name__} {getattr(leaf, 'dtype', '')}, not an "
                "array of numbers; save numbers in extra and keys by jax.random.key_data"
            )
    return flat


def _want_room(folder: Path, size: int) -> None:
    """Refuse to begin what cannot end: a save that fails halfway is untidy, though harmless."""
    free = shutil.disk_usage(folder).free
    if free < size:
        need, have = (f"{n / 2**20:.1f} MiB" for n in (size, free))
        raise OSError(errno.ENOSPC, f"it needs {need} and the disk has {have} free")


def _is_host(leaf: Any) -> bool:
    return isinstance(leaf, (np.ndarray, np.generic))


def _match(manifest: Manifest, wanted: dict[str, Any], where: Path) -> None:
    """Refuse another model's state: name the first leaf that differs, in the order of the tree."""
    remedy = "use the config it was written with, or another --output.folder"
    for name, leaf in wanted.items():
        if name not in manifest.leaves:
            raise UserError(f"{where} has no {name}, which this config needs; {remedy}")
        shape, dtype = manifest.leaves[name]
        if (shape, dtype) != (tuple(leaf.shape), str(leaf.dtype)):
            raise UserError(
                f"{where} is of another model: {name} is {_text(shape, dtype)} there and "
                f"{_text(tuple(leaf.shape), str(leaf.dtype))} in this config; {remedy}"
            )
    left = [name for name in manifest.leaves if name not in wanted]
    if left:
        raise UserError(f"{where} has {left[0]}, which this config does not have; {remedy}")


def _text(shape: tuple[int, ...], dtype: str) -> str:
    return f"{dtype}[{', '.join(map(str, shape))}]"


def _read(where: Path, wanted: dict[str, Any]) -> dict[str, Any]:
    """Read the leaves onto the devices they are wanted on, by default the first."""
    first = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    ask: dict[str, Any] = {}
    for name, leaf in wanted.items():
        sharding = getattr(leaf, "sharding", None) or first
        ask[name] = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
        if _is_host(leaf):
            ask[name] = np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape)
    try:
        got = orbax().load(plain(where) / ARRAYS, ask)
    except Exception as error:
        raise StoreError(
            f"{where} is as it was written but cannot be read ({_cause(error)}); "
            "use the versions of jax and orbax that wrote it"
        ) from error
    return {name: got[name] for name in wanted}


def _cause(error: BaseException) -> str:
    """The reason for a failure in a few words."""
    text = getattr(error, "strerror", None) or str(error)
    for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EROFS):
        if os.strerror(number) in text:
            return os.strerror(number).lower()
    return (text.splitlines() or [type(error).__name__])[0][:200]
