"""The checkpoint to read: found by one process, the same for all that run together."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from dsjax.checkpoint import files
from dsjax.checkpoint import manifest as manifests
from dsjax.checkpoint import plain as paths
from dsjax.checkpoint.files import Gone
from dsjax.checkpoint.manifest import MANIFEST, Damaged, Manifest
from dsjax.errors import UserError

Say = Callable[[str], None]
T = TypeVar("T")
TRIES, PAUSE_S = 20, 0.05
STARTING = "put back a copy of one, or move the folder away to start again"
READING = "put back a copy of one, or give another run"


def read(folder: Path, say: Say, use: Callable[[Manifest, Path], T]) -> T:
    """Return what `use` makes of the newest checkpoint that is as written, and of its path.

    A writer may be at work: it removes no checkpoint that is held here. Where it cannot see that
    (NFS without locks), the newest is read in its place. Several processes read the same one.
    """
    if jax.process_count() > 1:
        with agreed(folder, say, is_ours=False) as manifest:
            return use(manifest, folder / files.name(manifest.step))
    for _ in range(TRIES):
        with newest(folder, say, is_ours=False) as manifest:
            where = folder / files.name(manifest.step)
            try:
                return use(manifest, where)
            except (OSError, ValueError):  # tensorstore's and our own
                if _is_still(where, manifest):
                    raise
    raise _restless(folder)


def _is_still(where: Path, manifest: Manifest) -> bool:
    """True if a checkpoint is there, and was not removed or replaced meanwhile."""
    try:
        return manifests.read(where) == manifest
    except Damaged:
        return False


@contextlib.contextmanager
def newest(folder: Path, say: Say, *, is_ours: bool,
           check: Callable[[Path], Manifest] = files.verify,
           remedy: str | None = None) -> Iterator[Manifest]:
    """Manifest of the newest checkpoint that is as written; it stays there while the block runs.

    is_ours: the damaged ones after it are moved aside, so that training goes on from it.
    check: reads a checkpoint's manifest, and raises Damaged; `manifest.read` looks at no array.
    remedy: what to do where none is as written; by default that of training, where `is_ours`.
    """
    remedy = remedy or (STARTING if is_ours else READING)
    with contextlib.ExitStack() as stack:
        for _ in range(TRIES):
            try:
                found, damaged = _scan(folder, check, stack, remedy)
                break
            except Gone:
                time.sleep(PAUSE_S)
        else:
            raise _restless(folder)
        for bad, reason in damaged.items():
            aside = f" and is kept as {files.set_aside(folder, bad).name}" if is_ours else ""
            say(f"checkpoint {bad} is damaged ({reason}){aside}; going back to checkpoint "
                f"{found.step}")
        yield found


def _scan(folder: Path, check: Callable[[Path], Manifest],
          stack: contextlib.ExitStack, remedy: str) -> tuple[Manifest, dict[int, Damaged]]:
    """The newest manifest that is as written, held by `stack`, and what is wrong with those after.

    Raises Gone where a writer has removed what was just there, UserError where there is none.
    """
    damaged: dict[int, Damaged] = {}
    for step in reversed(files.steps(folder)):
        path = folder / files.name(step)
        with contextlib.ExitStack() as mine:
            mine.enter_context(files.held(path))
            try:
                manifest = check(path)
                if manifest.step != step:
                    raise Damaged(f"its {MANIFEST} is of step {manifest.step}")
            except (Damaged, UserError) as why:
                if not os.path.lexists(path):
                    raise Gone from None
                if isinstance(why, UserError):  # it may be whole
                    raise
                damaged[step] = why
                continue
            stack.enter_context(mine.pop_all())
            return manifest, damaged
    if files.is_replacing(folder):
        raise Gone
    if not damaged:
        raise UserError(f"there is no checkpoint in {folder}; train first or give another run")
    reasons = ", ".join(f"checkpoint {bad}: {reason}" for bad, reason in damaged.items())
    raise UserError(
        f"no checkpoint in {folder} can be read ({reasons}); {remedy}"
    )


def _restless(folder: Path) -> UserError:
    if files.is_replacing(folder) and not files.steps(folder):
        return UserError(f"the checkpoint in {folder} was being replaced when its writer ended; go "
                         "on with the training, which puts it back")
    return UserError(f"the checkpoints in {folder} are removed faster than they are read; keep "
                     "more of them (--output.keep) or save less often")


@contextlib.contextmanager
def agreed(folder: Path, say: Say, *, is_ours: bool) -> Iterator[Manifest]:
    """As `newest`, found by the first process and taken by all."""
    if jax.process_count() == 1:
        with newest(folder, say, is_ours=is_ours) as manifest:
            yield manifest
        return
    with contextlib.ExitStack() as stack:
        found: Manifest | UserError | None = None
        if jax.process_index() == 0:
            try:
                found = stack.enter_context(newest(folder, say, is_ours=is_ours))
            except UserError as error:
                found = error
        mine = found.step if isinstance(found, Manifest) else -1
        step = int(multihost_utils.broadcast_one_to_all(np.int32(mine)))
        if isinstance(found, UserError):
            raise found
        if step < 0:
            raise UserError(f"the first process found no checkpoint to read in {folder}; see what "
                            "it says")
        where = folder / files.name(step)
        if found is None:
            stack.enter_context(files.held(where))
        meet()  # all hold it before one lets it go
        yield found or manifests.read(where)


def first_checks(check: Callable[[], None], what: str) -> None:
    """Check in the first process alone, and refuse in all where it refuses; `what` is checked."""
    found: UserError | None = None
    if jax.process_index() == 0:
        try:
            check()
        except UserError as error:
            if jax.process_count() == 1:
                raise
            found = error
    if jax.process_count() == 1:
        return
    is_good = bool(multihost_utils.broadcast_one_to_all(np.bool_(found is None)))
    if found is not None:
        raise found
    if not is_good:
        raise UserError(f"the first process refused {what}; see what it says")


def plain(folder: Path) -> Path:
    """A plain path to a folder, one for all processes, which orbax wants of those that save."""
    if jax.process_count() == 1 or paths.is_plain(folder):
        return paths.plain(folder)
    found: Path | UserError = Path()
    if jax.process_index() == 0:
        try:
            found = paths.plain(folder)
        except UserError as error:
            found = error
    mine = b"" if isinstance(found, UserError) else str(found).encode()
    said = multihost_utils.broadcast_one_to_all(np.frombuffer(mine.ljust(512, b"\0"), np.uint8))
    at = bytes(said).rstrip(b"\0").decode()
    if isinstance(found, UserError):
        raise found
    if not at:
        raise UserError(f"the first process cannot link to {folder}; see its words")
    paths.link(Path(at), folder)  # where its folder for temporary files is not this process's
    return Path(at)


def meet() -> None:
    """Wait for all processes."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("checkpoint")
