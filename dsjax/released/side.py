"""Small files beside weights (tokenizer, settings, code): which there are, and which may be copied.

A checkpoint comes from somebody else, so that a link in it must not make a copy carry a file of the
user's own: links are followed within the checkpoint's folder, and within the repository of a
Hugging Face cache (`models--*`), whose snapshots are links into `blobs`. Weights may be links to
wherever they lie: what is no weight is refused there.
"""

from __future__ import annotations

import os
from pathlib import Path

from dsjax import disk
from dsjax.errors import UserError
from dsjax.released import files

EXTRAS = (".json", ".txt", ".model", ".tiktoken", ".jinja", ".py")
LIMIT, TOTAL = disk.LIMIT, 1 << 30
"""Bytes that one of them may have, and all together: DeepSeek's have 8 MB."""
REMEDY = "put a copy of the right file there, or remove it"


def extra_files(folder: Path) -> list[Path]:
    """Return the files beside config and weights: tokenizer, generation settings, code."""
    own = (files.CONFIG, files.INDEX)
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise UserError(f"{folder} cannot be read ({disk.cause(error).lower()}); give the folder "
                        "of a checkpoint") from None
    paths = [folder / name for name in names
             if name not in own and not name.startswith(".") and Path(name).suffix in EXTRAS]
    paths = [path for path in paths if path.is_file() or path.is_symlink()]
    total = sum(checked(path, folder) for path in paths if not path.is_dir())
    if total > TOTAL:
        raise UserError(f"{folder} has {files.size(total)} of files beside its weights, above "
                        f"the {files.size(TOTAL)} that are copied; move what does not belong "
                        "to the checkpoint")
    return [path for path in paths if not path.is_dir()]


def checked(path: Path, folder: Path) -> int:
    """Bytes of a file of a checkpoint that may be copied; others are refused by name."""
    real, home = os.path.realpath(path), _home(folder)
    if not os.path.exists(real):
        raise UserError(f"{path} is a link to {real}, which is not there; download the checkpoint "
                        f"again, or {REMEDY}")
    if not Path(real).is_relative_to(home):
        raise UserError(f"{path} is a link to {real}, outside {home}, whose files alone are "
                        f"copied; {REMEDY}")
    if not os.path.isfile(real):
        raise UserError(f"{path} is no regular file; {REMEDY}")
    try:
        with open(real, "rb") as file:
            size = os.fstat(file.fileno()).st_size
    except OSError as error:
        raise UserError(f"{path} cannot be read ({disk.cause(error).lower()}); {REMEDY}") from None
    if size > LIMIT:
        raise UserError(f"{path} has {files.size(size)}, above the {files.size(LIMIT)} that "
                        f"a file beside weights may have; {REMEDY}")
    return size


def _home(folder: Path) -> Path:
    """The folder that links may lead to: the checkpoint's own, or its repository's in a cache."""
    real = Path(os.path.realpath(folder))
    for parent in real.parents:
        if parent.name.startswith("models--") and real.relative_to(parent).parts[0] == "snapshots":
            return parent
    return real


def copy(source: Path, target: Path) -> None:
    """Copy one file."""
    disk.write_whole(target, disk.read_bytes(source, REMEDY, LIMIT))
