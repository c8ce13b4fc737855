"""A checkpoint's folder is whole or not there: one manifest of every file, one rename.

A checkpoint is written under a hidden name, then listed in its `manifest`, flushed to the disk, and
renamed. The rename is the only moment at which it comes into being, so that a process killed before
leaves nothing that could be taken for one. The hashes are needed: tensorstore checks its indices,
but a bit flipped in the numbers themselves is read back without a word.

It goes by a rename too, and not while someone reads it: a reader holds the folder (`held`) by a
lock of the kernel, and what is held is left for the next removal. Where the file system has no such
locks a reader finds that the folder is gone, and takes the newest that is there then.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dsjax.checkpoint import manifest
from dsjax.checkpoint.manifest import MANIFEST, Manifest, hash_of
from dsjax.disk import cause
from dsjax.errors import UserError

PARTIAL, REPLACED, REMOVED = ".saving-", ".replaced-", ".removing-"


class Gone(Exception):  # noqa: N818 (always caught)
    """A checkpoint was there, and is not any more."""


def name(step: int) -> str:
    """Folder name of a finished checkpoint."""
    return f"step-{step:08d}"


def steps(folder: Path) -> list[int]:
    """Steps of the finished checkpoints in a folder, oldest first; bytes are not looked at."""
    try:
        names = os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except (OSError, ValueError) as error:
        raise UserError(f"{folder} cannot be read ({cause(error).lower()}); let it be read, or "
                        "give another run") from None
    found = (re.fullmatch("step-([0-9]{8,10})", text) for text in names)
    numbers = {int(match[1]) for match in found if match}
    return sorted(step for step in numbers if name(step) in names and step < 2**31)


def is_replacing(folder: Path) -> bool:
    """True while a checkpoint is being replaced by one of the same step."""
    return any(folder.glob(f"{REPLACED}*"))


def finish(partial: Path, step: int, leaves: dict[str, Any], extra: dict[str, Any]) -> None:
    """List what lies in `partial`, flush it, and make it the folder's checkpoint of `step`."""
    files = {}
    (partial / MANIFEST).unlink(missing_ok=True)  # of one that was stopped here before
    for path in sorted(p for p in partial.rglob("*") if p.is_file()):
        files[path.relative_to(partial).as_posix()] = (path.stat().st_size, hash_of(path))
        _flush(path)
    manifest.write(partial, Manifest(step, leaves, extra, files))
    _flush(partial / MANIFEST)
    for path in [*(p for p in partial.rglob("*") if p.is_dir()), partial]:
        _flush(path)
    final, replaced = partial.parent / name(step), partial.parent / f"{REPLACED}{step:08d}"
    if os.path.lexists(final):
        os.rename(final, replaced)
    os.rename(partial, final)
    _flush(partial.parent)
    _delete(replaced)


def tidy(folder: Path) -> None:
    """Remove what killed saves left behind; put back a checkpoint that was just being replaced."""
    for path in list(folder.iterdir()) if folder.is_dir() else []:
        left = re.fullmatch(r"(\.\w+-)([0-9]{8,10})", path.name)
        if left is None or left[1] not in (PARTIAL, REPLACED, REMOVED):
            continue
        final = folder / name(int(left[2]))
        if left[1] == REPLACED and not os.path.lexists(final):
            os.rename(path, final)
        else:
            _delete(path)


def remove(partial: Path, patience_s: float = 5.0) -> None:
    """Remove what a failed save has written, and what orbax's threads go on writing for a while."""
    quiet_since = begun = time.monotonic()
    while time.monotonic() - begun < patience_s and time.monotonic() - quiet_since < 0.5:
        if partial.exists():
            shutil.rmtree(partial, ignore_errors=True)
            quiet_since = time.monotonic()
        time.sleep(0.05)


def prune(folder: Path, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints."""
    for old in steps(folder)[:-keep]:
        drop(folder, old)


def drop(folder: Path, step: int) -> None:
    """Remove an old checkpoint, unless someone reads it: then the next removal takes it."""
    path, hidden = folder / name(step), folder / f"{REMOVED}{step:08d}"
    with _locked(path, fcntl.LOCK_EX) as is_free:
        if not is_free:
            return
        _delete(hidden)
        with contextlib.suppress(OSError):  # left where it is
            os.rename(path, hidden)
    _delete(hidden)


def _delete(path: Path) -> None:
    """Remove a folder, or a link or file of its name, as far as that can be done."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def set_aside(folder: Path, step: int) -> Path:
    """Move a damaged checkpoint out of the sequence, kept for whoever wants to look at it."""
    aside, count = folder / f"damaged-{step:08d}", 1
    while os.path.lexists(aside):
        count += 1
        aside = folder / f"damaged-{step:08d}-{count}"
    os.rename(folder / name(step), aside)
    return aside


@contextlib.contextmanager
def held(path: Path) -> Iterator[None]:
    """Keep a checkpoint from being removed while the block runs; Gone if it is not there."""
    with _locked(path, fcntl.LOCK_SH) as is_ours:
        if not is_ours or not os.path.lexists(path):
            raise Gone
        yield


def _is_at(path: Path, handle: int) -> bool:
    """True if an open folder is still the one of that name."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(handle))
    except OSError:
        return False


@contextlib.contextmanager
def _locked(path: Path, kind: int) -> Iterator[bool]:
    """Lock a folder; true where it is ours, or where there are no locks."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:  # it is gone, or may not be read; whoever reads its manifest says so
        yield True
        return
    try:
        is_ours = True
        try:
            fcntl.flock(handle, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            is_ours = False
        except OSError:  # a file system without locks
            pass
        yield is_ours and _is_at(path, handle)
    finally:
        os.close(handle)


def verify(path: Path) -> Manifest:
    """Read a checkpoint's manifest and every byte it lists; Damaged says what is not as written."""
    found = manifest.read(path)
    manifest.check(path, found)
    return found


def _flush(path: Path) -> None:
    """Have the disk hold a file, or the names in a folder, also after a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
