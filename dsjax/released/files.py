"""The files of a released checkpoint: which tensors there are, and their rows a piece at a time.

The `safetensors` library opens and validates every file and writes them. Tensors are read with
plain reads at the offsets of the header, because the library hands no FP8 to NumPy and maps files
into memory, where the pages that were touched count as the process's own.
"""

from __future__ import annotations

import errno
import hashlib
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from dsjax import disk
from dsjax.errors import UserError

DTYPES = {
    "F32": np.dtype(np.float32),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F16": np.dtype(np.float16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E8M0": np.dtype(ml_dtypes.float8_e8m0fnu),
}
INDEX, SINGLE, CONFIG = "model.safetensors.index.json", "model.safetensors", "config.json"
SAMPLE = 16 << 10
"""Bytes at each of the places of a tensor that its fingerprint reads."""
PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")


@dataclass(frozen=True)
class Tensor:
    """One tensor where it lies; rows are its first dim."""

    name: str
    file: Path
    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype
    is_read_again: bool = False
    """True where the system shall keep what was read, as far as memory that nobody needs goes."""

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return math.prod(self.shape[1:]) * self.dtype.itemsize

    @property
    def nbytes(self) -> int:
        """Bytes of all of it."""
        return math.prod(self.shape) * self.dtype.itemsize

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Read rows start..stop."""
        out = np.empty((stop - start, *self.shape[1:]), self.dtype)
        view = out.reshape(-1).view(np.uint8).data
        at = self.offset + start * self.row_bytes
        with self.file.open("rb", buffering=0) as file:
            file.seek(at)
            done = 0
            while done < len(view):
                got = file.readinto(view[done:])
                if not got:
                    raise UserError(f"{self.file} ends inside {self.name}; download it again")
                done += got
            if hasattr(os, "posix_fadvise") and not self.is_read_again:
                os.posix_fadvise(file.fileno(), at, len(view), os.POSIX_FADV_DONTNEED)
        return out


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file."""
    return disk.read_object(path, "give the folder of a whole checkpoint, or download it again")


def open_checkpoint(folder: Path) -> dict[str, Tensor]:
    """Every tensor of a checkpoint by name, in the order of files and offsets."""
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; give the folder of a checkpoint")
    index = folder / INDEX
    if index.is_file():
        return _indexed(folder, read_json(index).get("weight_map", {}))
    files = sorted(p for p in folder.glob("*.safetensors") if not p.name.startswith("."))
    if not files:
        pickles = sorted(p.name for pattern in PICKLES for p in folder.glob(pattern))
        if pickles:
            raise UserError(
                f"{folder} has only pickled weights ({pickles[0]}), which can run any program when "
                "they are opened; get the checkpoint as safetensors"
            )
        raise UserError(f"{folder} has no *.safetensors; give the folder of a checkpoint")
    if len(files) > 1:
        raise UserError(
            f"{folder} has {len(files)} *.safetensors but no {INDEX}; download the index too"
        )
    return {t.name: t for t in open_file(files[0])}


def fingerprint(folder: Path) -> str:
    """Sixteen hex digits of a checkpoint: of every tensor its name, shape and some of its bytes.

    Read are 16 KB from the beginning, the middle and the end of each, so that small tensors count
    whole; of a large one a change in a few numbers may be missed.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(open_checkpoint(folder).items()):
        digest.update(f"{name} {tensor.shape} {tensor.dtype}".encode())
        with tensor.file.open("rb") as file:
            for start in sorted({0, tensor.nbytes // 2, max(tensor.nbytes - SAMPLE, 0)}):
                file.seek(tensor.offset + start)
                digest.update(file.read(min(SAMPLE, tensor.nbytes - start)))
    return digest.hexdigest()[:16]


def _indexed(folder: Path, weight_map: Any) -> dict[str, Tensor]:
    """The tensors an index lists, each found in its file."""
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{folder / INDEX} has no weight_map; download it again")
    files = sorted(set(map(str, weight_map.values())))
    for name in files:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise UserError(f"{folder / INDEX} names {name[:100]!r}, which is no safetensors file "
                            "of it; download it again")
        if not os.path.isfile(folder / name):
            raise UserError(f"{folder / name[:200]} is missing, which {INDEX} lists; download it")
    found = {}
    for name in files:
        for tensor in open_file(folder / name):
            listed = weight_map.get(tensor.name)
            if listed != name:
                said = f"lists in {str(listed)[:100]}" if listed else "does not list"
                raise UserError(f"{folder / name} holds {tensor.name[:200]}, which {INDEX} {said}; "
                                "download both again")
            found[tensor.name] = tensor
    for name, file in weight_map.items():
        if name not in found:
            raise UserError(f"{folder / file} lacks {name[:200]}, which {INDEX} lists; download it "
                            "again")
    return found


def open_file(path: Path) -> list[Tensor]:
    """The tensors of one file, by offset; the library checks header and length."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():  # a pipe, which would be waited for
        raise UserError(f"{path} is no regular file, or a link to what is not there; download it "
                        "again")
    try:
        with path.open("rb") as file, safe_open(path, framework="np"):
            length = int.from_bytes(file.read(8), "little")
            header = disk.parse_json(file.read(length), "its header", "")
    except PermissionError as error:
        raise UserError(f"{path} cannot be read ({disk.cause(error).lower()}); let it be read"
                        ) from None
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(
            f"{path} is cut short or is no safetensors file ({disk.cause(error)}); download it "
            "again"
        ) from None
    header.pop("__metadata__", None)
    found = []
    for name, entry in header.items():
        if entry["dtype"] not in DTYPES:
            raise UserError(
                f"{path}: {name[:200]} is {entry['dtype']}; weights are one of "
                f"{', '.join(DTYPES)}; get the released checkpoint"
            )
        offset = 8 + length + entry["data_offsets"][0]
        dtype = DTYPES[entry["dtype"]]
        found.append(Tensor(name, path, offset, tuple(entry["shape"]), dtype))
    return sorted(found, key=lambda t: t.offset)


def write_file(path: Path, tensors: dict[str, np.ndarray]) -> None:
    """Write one file whole or not at all."""
    from safetensors.numpy import save_file

    partial = path.with_name(f".{path.name}.partial")
    plain = {name: np.ascontiguousarray(a) for name, a in tensors.items()}
    try:
        partial.touch()
        mode = partial.stat().st_mode
        save_file(plain, partial, metadata={"format": "pt"})
        partial.chmod(mode)  # the library makes files that only their owner may read
        with partial.open("rb") as file:
            os.fsync(file.fileno())
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        os.rename(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def disk_error(error: BaseException) -> str | None:
    """The reason when a disk, its room, a permission or a name is at fault; None otherwise."""
    numbers = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EROFS, errno.EPERM,
               errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.EIO)
    for number in numbers:
        if getattr(error, "errno", None) == number or os.strerror(number) in str(error):
            return os.strerror(number).lower()
    return None


def size(count: float) -> str:
    """Bytes in the unit that suits them."""
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:.4g} {unit}"
        count /= 1000
    return f"{count:,.1f} GB" if count < 1000 else f"{count / 1000:,.2f} TB"


Progress = Callable[[int, int], None]
"""Called with bytes done and bytes in all."""
