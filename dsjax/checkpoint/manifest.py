"""The list of what a checkpoint holds, by which damage, or another kind of list, is told.

`manifest.json` has sizes and SHA-256 of the checkpoint's files, shapes and dtypes of its leaves,
the caller's own data, and a SHA-256 of itself. Whatever else stands there is damage, and so is what
is missing; of a file that the machine does not let be read (rights, a failing disk) nothing is
known, so that it is refused.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from dsjax import disk
from dsjax.errors import UserError

FORMAT = 1
REMEDY = "let it be read, or move the checkpoint away to do without it"
MANIFEST = "manifest.json"
LIMIT = 1 << 30  # bytes of a manifest: one of a million files has 150 MB
LARGEST = 2**60  # bytes of a leaf, and more than a step is


class Damaged(Exception):  # noqa: N818 (a state of a checkpoint, always caught)
    """The reason not to trust a checkpoint, in words that follow `is damaged:`."""


@dataclass(frozen=True)
class Manifest:
    """The contents of a checkpoint; `files` are all its others, relative to its folder."""

    step: int
    leaves: dict[str, tuple[tuple[int, ...], str]]  # dotted name -> shape, dtype
    extra: dict[str, Any]
    files: dict[str, tuple[int, str]]  # path -> bytes, SHA-256
    format: int = FORMAT


def write(path: Path, manifest: Manifest) -> None:
    """Write the manifest of the checkpoint in `path`, signed."""
    body = asdict(manifest)
    text = json.dumps(body | {"sha256": _hash_json(body)}, indent=1)
    (path / MANIFEST).write_text(text, encoding="utf-8")


def read(path: Path) -> Manifest:
    """The manifest of a checkpoint, checked against the hash of itself."""
    try:
        body = disk.read_object(path / MANIFEST, "", LIMIT)
    except disk.UnreadableError as error:
        raise UserError(f"{error}{REMEDY}") from None
    except UserError as error:
        said = str(error).removeprefix(f"{path}/").removesuffix("; ")
        raise Damaged(said) from None
    if body.pop("sha256", None) != _hash_json(body):
        raise Damaged(f"{MANIFEST} is not what was written")
    if body.get("format") != FORMAT:
        raise Damaged(f"its format is {str(body.get('format'))[:20]} and this version reads "
                      f"{FORMAT}")
    wrong = sorted(body.keys() ^ Manifest.__dataclass_fields__.keys())
    if wrong:
        raise Damaged(f"{MANIFEST} {'has' if wrong[0] in body else 'lacks'} {wrong[0][:40]!r}")
    wrong = [name for name, is_one in KINDS.items() if not is_one(body[name])]
    if wrong:
        raise Damaged(f"{MANIFEST} has {wrong[0]}={str(body[wrong[0]])[:40]}, which no checkpoint "
                      "has")
    leaves = {name: (tuple(shape), dtype) for name, (shape, dtype) in body["leaves"].items()}
    return Manifest(**(body | {"leaves": leaves}))


def check(path: Path, manifest: Manifest) -> None:
    """Read every byte that a manifest lists; Damaged says what is not as written.

    UserError says what may not be read.
    """
    for file, (size, digest) in manifest.files.items():
        with _reading(path, file):
            _check_size(path / file, file, size)
            if hash_of(path / file) != digest:
                raise Damaged(f"{file} is not what was written")


def read_with_sizes(path: Path) -> Manifest:
    """The manifest of a checkpoint whose files are there and whole by their sizes; none is read.

    Raises as `read` and `check`.
    """
    found = read(path)
    for file, (size, _) in found.files.items():
        with _reading(path, file):
            _check_size(path / file, file, size)
    return found


def _check_size(path: Path, file: str, size: int) -> None:
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):
        raise Damaged(f"{file} is no file")
    if found.st_size != size:
        raise Damaged(f"{file} has {found.st_size} bytes of {size}")


@contextlib.contextmanager
def _reading(path: Path, file: str) -> Iterator[None]:
    """Say of a file that a block cannot read whether it is damaged or may not be read."""
    try:
        yield
    except FileNotFoundError:
        raise Damaged(f"{file} is missing") from None
    except (OSError, UnicodeError) as error:
        if disk.is_absence(error):
            raise Damaged(f"{file} cannot be read ({disk.cause(error)})") from None
        raise UserError(f"{path / file} cannot be read ({disk.cause(error).lower()}); "
                        f"{REMEDY}") from None


def _is_step(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**31


def _is_leaves(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_is_leaf, value.values()))


def _is_leaf(value: Any) -> bool:
    """True for a shape and a dtype of an array that a machine may hold."""
    if not isinstance(value, list) or len(value) != 2 or not isinstance(value[0], list):
        return False
    shape, dtype = value
    if not all(type(n) is int and 0 <= n < LARGEST for n in shape) or not isinstance(dtype, str):
        return False
    try:
        known = np.dtype(getattr(ml_dtypes, dtype, dtype))
    except (TypeError, ValueError):
        return False
    is_numbers = str(known) == dtype and known.kind in "biufcV"  # V is how bfloat16 calls itself
    return is_numbers and math.prod(shape) * known.itemsize < LARGEST


def _is_files(value: Any) -> bool:
    return isinstance(value, dict) and bool(value) and all(map(_is_file, value, value.values()))


def _is_file(name: str, value: Any) -> bool:
    """True for a path inside the folder, its bytes and their hash."""
    if len(name) > 1000 or "\0" in name or any(part in ("", ".", "..") for part in name.split("/")):
        return False
    if not isinstance(value, list) or len(value) != 2:
        return False
    size, digest = value
    return (type(size) is int and size >= 0 and isinstance(digest, str)
            and re.fullmatch("[0-9a-f]{64}", digest) is not None)


KINDS = {"step": _is_step, "leaves": _is_leaves, "files": _is_files,
         "extra": lambda value: isinstance(value, dict)}


def hash_of(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _hash_json(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
