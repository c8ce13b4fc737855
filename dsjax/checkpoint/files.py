"""What makes a checkpoint's folder whole: one manifest of every file, one rename.

A checkpoint is written under a hidden name, then listed in `manifest.json` (sizes and SHA-256 of
its files, shapes and dtypes of its leaves, the caller's own data, and a SHA-256 of itself), flushed
to the disk, and renamed. The rename is the only moment at which it comes into being, so that a
process killed before leaves nothing that could be taken for one. The hashes are needed: tensorstore
checks its indices, but a bit flipped in the numbers themselves is read back without a word.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

FORMAT = 1
MANIFEST = "manifest.json"
PARTIAL, REPLACED = ".saving-", ".replaced-"


class Damaged(Exception):  # noqa: N818 (a state of a checkpoint, always caught)
    """Why a checkpoint cannot be trusted, in words that follow `is damaged:`."""


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint holds; `files` are all its others, relative to its folder."""

    step: int
    leaves: dict[str, tuple[tuple[int, ...], str]]  # dotted name -> shape, dtype
    extra: dict[str, Any]
    files: dict[str, tuple[int, str]]  # path -> bytes, SHA-256
    format: int = FORMAT


def name(step: int) -> str:
    """Folder name of a finished checkpoint."""
    return f"step-{step:08d}"


def steps(folder: Path) -> list[int]:
    """Steps of the finished checkpoints in a folder, oldest first; bytes are not looked at."""
    if not folder.is_dir():
        return []
    found = (re.fullmatch(r"step-(\d{8,})", p.name) for p in folder.iterdir())
    return sorted(int(match[1]) for match in found if match)


def finish(partial: Path, step: int, leaves: dict[str, Any], extra: dict[str, Any]) -> None:
    """List what lies in `partial`, flush it, and make it the folder's checkpoint of `step`."""
    files = {}
    for path in sorted(p for p in partial.rglob("*") if p.is_file()):
        files[path.relative_to(partial).as_posix()] = (path.stat().st_size, _hash(path))
        _flush(path)
    body = asdict(Manifest(step, leaves, extra, files))
    text = json.dumps(body | {"sha256": _hash_json(body)}, indent=1)
    (partial / MANIFEST).write_text(text, encoding="utf-8")
    _flush(partial / MANIFEST)
    for path in [*(p for p in partial.rglob("*") if p.is_dir()), partial]:
        _flush(path)
    final, replaced = partial.parent / name(step), partial.parent / f"{REPLACED}{step:08d}"
    if final.exists():
        os.rename(final, replaced)
    os.rename(partial, final)
    _flush(partial.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def tidy(folder: Path) -> None:
    """Remove what killed saves left behind; put back a checkpoint that was just being replaced."""
    for path in list(folder.iterdir()) if folder.is_dir() else []:
        if path.name.startswith(REPLACED):
            final = folder / name(int(path.name.removeprefix(REPLACED)))
            if not final.exists():
                os.rename(path, final)
        if path.name.startswith((PARTIAL, REPLACED)):
            shutil.rmtree(path, ignore_errors=True)


def remove(partial: Path, patience_s: float = 5.0) -> None:
    """Remove what a failed save has written, and what orbax's threads go on writing for a while."""
    quiet_since = begun = time.monotonic()
    while time.monotonic() - begun < patience_s and time.monotonic() - quiet_since < 0.5:
        if partial.exists():
            shutil.rmtree(partial, ignore_errors=True)
            quiet_since = time.monotonic()
        time.sleep(0.05)


def set_aside(folder: Path, step: int) -> Path:
    """Move a damaged checkpoint out of the sequence, kept for whoever wants to look at it."""
    aside = folder / f"damaged-{step:08d}"
    shutil.rmtree(aside, ignore_errors=True)
    os.rename(folder / name(step), aside)
    return aside


def verify(path: Path) -> Manifest:
    """Read a checkpoint's manifest and every byte it lists; Damaged says what is not as written."""
    manifest = read(path)
    for file, (size, digest) in manifest.files.items():
        try:
            found = (path / file).stat().st_size
            if found != size:
                raise Damaged(f"{file} has {found} bytes of {size}")
            if _hash(path / file) != digest:
                raise Damaged(f"{file} is not what was written")
        except FileNotFoundError:
            raise Damaged(f"{file} is missing") from None
        except OSError as error:
            raise Damaged(f"{file} cannot be read ({error.strerror})") from None
    return manifest


def read(path: Path) -> Manifest:
    """The manifest, checked against the hash of itself."""
    try:
        body = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        digest = body.pop("sha256")
    except FileNotFoundError:
        raise Damaged(f"{MANIFEST} is missing") from None
    except (OSError, ValueError, KeyError, AttributeError):
        raise Damaged(f"{MANIFEST} cannot be read") from None
    if digest != _hash_json(body):
        raise Damaged(f"{MANIFEST} is not what was written")
    if body["format"] != FORMAT:
        raise Damaged(f"its format is {body['format']} and this version reads {FORMAT}")
    body["leaves"] = {k: (tuple(shape), dtype) for k, (shape, dtype) in body["leaves"].items()}
    return Manifest(**body)


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _hash_json(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _flush(path: Path) -> None:
    """Have the disk hold a file, or the names in a folder, also after a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
