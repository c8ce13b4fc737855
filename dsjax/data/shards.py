"""Token ids on disk: a folder of flat binary files, read as memory maps, and a small JSON index.

The files in order are one stream: the end token, then every document followed by the end token (the
leading one makes the first token of the first document a target too). `documents-*.bin` holds, for
each file, where its documents start (uint64, in tokens of that file). Files are written under a
temporary name and renamed, the index last, so a folder with an index is whole; what has since been
cut short is refused on opening. The tokenizer lies beside them as tokenizer.json.

Limits: documents do not span files; byte order is little-endian.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from dsjax.data.tokenizer import Tokenizer
from dsjax.errors import UserError

FORMAT = "dsjax tokens 1"
INDEX = "index.json"
TOKENIZER = "tokenizer.json"


@dataclass(frozen=True)
class Shards:
    """A token stream on disk; `shards[a:b]` are its ids a to b-1, `len` their number."""

    folder: Path
    vocab: int
    fingerprint: str
    end_id: int
    text_bytes: int
    files: tuple[np.ndarray, ...]
    document_starts: tuple[np.ndarray, ...]

    def __len__(self) -> int:
        return sum(map(len, self.files))

    def __getitem__(self, where: slice) -> np.ndarray:
        start, stop, step = where.indices(len(self))
        parts, base = [], 0
        for file in self.files:
            if start < base + len(file) and stop > base:
                parts.append(file[max(start - base, 0) : stop - base])
            base += len(file)
        return np.concatenate(parts)[::step] if parts else np.zeros(0, self.files[0].dtype)

    @property
    def documents(self) -> int:
        """The number of documents."""
        return sum(map(len, self.document_starts))

    def document(self, number: int) -> np.ndarray:
        """Return the ids of one document, without its end token."""
        for file, starts in zip(self.files, self.document_starts, strict=True):
            if number < len(starts):
                stop = starts[number + 1] if number + 1 < len(starts) else len(file)
                return file[int(starts[number]) : int(stop) - 1]
            number -= len(starts)
        raise IndexError(f"document {number} past the end of {self.folder}")


def exist(folder: str | Path) -> bool:
    """Tell whether `folder` holds finished shards."""
    return (Path(folder) / INDEX).is_file()


def remove(folder: str | Path) -> None:
    """Delete the shards in `folder`, finished or not, index first, and nothing else."""
    (Path(folder) / INDEX).unlink(missing_ok=True)
    for pattern in ("tokens-*.bin*", "documents-*.bin*"):
        for path in Path(folder).glob(pattern):
            path.unlink()


def read(folder: str | Path, tokenizer: Tokenizer | None = None) -> Shards:
    """Open the shards in `folder`; with `tokenizer`, refuse shards made with another."""
    folder = Path(folder)
    try:
        index = json.loads((folder / INDEX).read_text())
        if index["format"] != FORMAT:
            raise ValueError(f"format {index['format']!r}, not {FORMAT!r}")
        dtype = np.dtype(index["dtype"])
        opened = [_open_file(folder, shard, dtype) for shard in index["shards"]]
        shards = Shards(
            folder=folder,
            vocab=index["vocab"],
            fingerprint=index["tokenizer"],
            end_id=index["end_id"],
            text_bytes=sum(shard["text_bytes"] for shard in index["shards"]),
            files=tuple(tokens for tokens, _ in opened),
            document_starts=tuple(starts for _, starts in opened),
        )
    except FileNotFoundError as error:
        missing = f"{error.filename} is missing; prepare the shards with `dsjax data`"
        raise UserError(missing) from error
    except UserError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{folder / INDEX} is no shard index ({error}); prepare it again"
        ) from error
    if tokenizer is not None and not tokenizer.has_fingerprint(shards.fingerprint):
        raise UserError(
            f"{folder} was made with tokenizer {shards.fingerprint}, not {tokenizer.fingerprint}; "
            "use the tokenizer.json written beside it"
        )
    return shards


class Writer:
    """Writes shards into a folder as documents come; use as a context, which closes the index.

    with Writer(folder, tokenizer) as writer: writer.add(ids, text_bytes)
    """

    def __init__(
        self,
        folder: str | Path,
        tokenizer: Tokenizer,
        *,
        shard_tokens: int = 2**28,
        is_overwriting: bool = False,
    ):
        self._folder = Path(folder)
        if exist(folder) and not is_overwriting:
            raise UserError(f"{folder} already holds shards; choose another folder or overwrite")
        self._folder.mkdir(parents=True, exist_ok=True)
        remove(self._folder)
        self._tokenizer, self._limit = tokenizer, shard_tokens
        self._dtype = np.dtype("<u2" if tokenizer.vocab <= 2**16 else "<u4")
        self._shards: list[dict] = []
        self._pieces: list[np.ndarray] = [np.array([tokenizer.end_id], self._dtype)]
        self._starts: list[int] = []
        self._size, self._text_bytes = 1, 0

    def add(self, ids: Sequence[int] | np.ndarray, text_bytes: int) -> None:
        """Append one document (without end token) that stands for `text_bytes` bytes of text."""
        if self._size > self._limit:
            self._flush()
        document = np.asarray([*ids, self._tokenizer.end_id], np.int64)
        if document.min() < 0 or document.max() >= self._tokenizer.vocab:
            raise ValueError(f"ids outside [0, {self._tokenizer.vocab}) of the tokenizer")
        self._starts.append(self._size)
        self._pieces.append(document.astype(self._dtype))
        self._size += len(document)
        self._text_bytes += text_bytes

    def __enter__(self) -> "Writer":
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            return
        if self._starts:
            self._flush()
        if not self._shards:
            raise UserError(f"no documents to write into {self._folder}; give more text")
        self._tokenizer.save(self._folder / TOKENIZER)
        index = {
            "format": FORMAT,
            "dtype": self._dtype.str,
            "vocab": self._tokenizer.vocab,
            "tokenizer": self._tokenizer.fingerprint,
            "end_id": self._tokenizer.end_id,
            "shards": self._shards,
        }
        _write(self._folder / INDEX, (json.dumps(index, indent=1) + "\n").encode())

    def _flush(self) -> None:
        number = len(self._shards)
        shard: dict[str, Any] = {
            "tokens_file": f"tokens-{number:05d}.bin",
            "documents_file": f"documents-{number:05d}.bin",
            "tokens": self._size,
            "documents": len(self._starts),
            "text_bytes": self._text_bytes,
        }
        _write(self._folder / shard["tokens_file"], np.concatenate(self._pieces).tobytes())
        starts = np.array(self._starts, "<u8")
        _write(self._folder / shard["documents_file"], starts.tobytes())
        self._shards.append(shard)
        self._pieces, self._starts, self._size, self._text_bytes = [], [], 0, 0


def _open_file(folder: Path, shard: dict, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    pair = []
    for kind, of in (("tokens", dtype), ("documents", np.dtype("<u8"))):
        path = folder / shard[f"{kind}_file"]
        expected, size = shard[kind] * of.itemsize, path.stat().st_size
        if size != expected:
            raise UserError(
                f"{path} has {size} bytes where its index says {expected}; prepare it again"
            )
        pair.append(np.memmap(path, of, "r"))
    return pair[0], pair[1]


def _write(path: Path, data: bytes) -> None:
    temporary = path.with_name(path.name + ".part")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
