"""Token ids on disk: a folder of flat binary files, read as memory maps, and a small JSON index.

The files in order are one stream: the end token, then every document followed by the end token (the
leading one makes the first token of the first document a target too). `documents-*.bin` holds, for
each file, where its documents start (uint64, in tokens of that file). The tokenizer lies beside
them as tokenizer.json. A folder with an index is whole; `shards_index` checks what it says.

New files are written beside the old ones and exchanged at the end, or nothing is left of them: data
files get names that the folder does not have yet, and the index, which says what belongs to the
folder, is replaced last; only then are the files of the index before it removed. A process that is
killed leaves files that no index names; the next removes them.

Limits: documents do not span files; byte order is little-endian.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from dsjax import disk
from dsjax.data import shards_index
from dsjax.data.shards_index import FORMAT, INDEX, TOKENIZER
from dsjax.data.tokenizers.settings import GENERATION, SETTINGS
from dsjax.data.tokenizers.tokenizer import Tokenizer
from dsjax.errors import UserError

PARTS = ("train", "heldout")
"""Folders that `dsjax data` writes into its --out."""
SHARD_TOKENS = 2**28
_SMALL = (SETTINGS, GENERATION, TOKENIZER, INDEX)
_DATA = re.compile(r"(?:tokens|documents)(?:-\d+)?-\d{5,}\.bin|\.(?:tokens|documents)-.*\.part")
_STAGE = re.compile(r"\.new\.\d+")



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
    made: str | None = None
    """Mark that shards exchanged together have in common."""

    def __len__(self) -> int:
        return sum(map(len, self.files))

    def __getitem__(self, where: slice) -> np.ndarray:
        start, stop, step = where.indices(len(self))
        parts, base = [], 0
        for file in self.files:
            if start < base + len(file) and stop > base:
                part = file[max(start - base, 0) : stop - base]
                shards_index.check_ids(part, self.vocab, self.folder)
                parts.append(part)
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
                start = int(starts[number])
                stop = int(starts[number + 1]) if number + 1 < len(starts) else len(file)
                if not start < stop <= len(file):
                    raise shards_index.broken(self.folder, f"a document from {start:,} to {stop:,}")
                document = file[start : stop - 1]
                shards_index.check_ids(document, self.vocab, self.folder)
                return document
            number -= len(starts)
        raise IndexError(f"document {number} past the end of {self.folder}")


def exist(folder: str | Path) -> bool:
    """Tell whether `folder` holds finished shards."""
    return os.path.isfile(Path(folder) / INDEX)


def part(folder: str | Path, name: str) -> Path:
    """Return the folder of shards that is meant: `folder`, or the part of what holds both."""
    inside = Path(folder) / name
    return inside if not exist(folder) and exist(inside) else Path(folder)


def read(folder: str | Path, tokenizer: Tokenizer | None = None) -> Shards:
    """Open the shards in `folder`; with `tokenizer`, refuse shards made with another."""
    opened = shards_index.read(Path(folder), tokenizer)
    return Shards(folder=Path(folder), **vars(opened))


class Writer:
    """Writes shards into a folder as documents come; use as a context, which closes the index.

    with Writer(folder, tokenizer) as writer: writer.add(ids, text_bytes)
    """

    def __init__(
        self,
        folder: str | Path,
        tokenizer: Tokenizer,
        *,
        shard_tokens: int = SHARD_TOKENS,
        is_overwriting: bool = False,
    ):
        self._folder = Path(folder)
        if shard_tokens < 1:
            raise UserError(f"--shard-tokens {shard_tokens} makes no files; use at least 1")
        if exist(folder) and not is_overwriting:
            raise UserError(f"{folder} holds shards; choose another --out, or use --overwrite")
        self._stage, self._is_committed = self._folder / f".new.{os.getpid()}", False
        self._made = [p for p in (self._folder, *self._folder.parents) if not os.path.lexists(p)]
        disk.make_folder(self._folder, "name another --out")
        if not exist(folder):
            _remove(self._folder, keep=set())
        self._stem = _free_stem(self._folder)
        self._tokenizer, self._limit = tokenizer, shard_tokens
        self._dtype = np.dtype("<u2" if tokenizer.vocab <= 2**16 else "<u4")
        self._shards: list[dict[str, Any]] = []
        self._pieces: list[np.ndarray] = [np.array([tokenizer.end_id], self._dtype)]
        self._starts: list[int] = []
        self._size, self._text_bytes = 1, 0

    def add(self, ids: Sequence[int] | np.ndarray, text_bytes: int) -> None:
        """Append one document (without end token) that stands for `text_bytes` bytes of text."""
        if self._size > self._limit:
            self._flush()
        document = np.append(np.asarray(ids, np.int64), self._tokenizer.end_id)
        if document.min() < 0 or document.max() >= self._tokenizer.vocab:
            raise ValueError(f"ids outside [0, {self._tokenizer.vocab}) of the tokenizer")
        self._starts.append(self._size)
        self._pieces.append(document.astype(self._dtype))
        self._size += len(document)
        self._text_bytes += text_bytes

    def finish(self) -> str:
        """Write what is left; the folder is still what it was. Returns what tells it from others.

        That is a digest of counts and sizes, not of ids.
        """
        if self._starts:
            self._flush()
        if not self._shards:
            raise UserError(f"no documents to write into {self._folder}; give more text")
        told = json.dumps([self._tokenizer.fingerprint, self._shards])
        return hashlib.sha256(told.encode()).hexdigest()[:16]

    def stage(self, made: str | None = None) -> None:
        """Write tokenizer and index beside the old ones; `made` is of all exchanged at once."""
        index = {
            "format": FORMAT,
            "dtype": self._dtype.str,
            "vocab": self._tokenizer.vocab,
            "tokenizer": self._tokenizer.fingerprint,
            "end_id": self._tokenizer.end_id,
            **({"made": made} if made else {}),
            "shards": self._shards,
        }
        disk.make_folder(self._stage, "name another --out")
        self._tokenizer.save(self._stage / TOKENIZER)
        disk.write_json(self._stage / INDEX, index)

    def commit(self) -> None:
        """Make the new shards those of the folder, and remove the old ones; takes no room."""
        try:
            for name in _SMALL:  # the index last
                if (self._stage / name).exists():
                    os.replace(self._stage / name, self._folder / name)
                else:
                    (self._folder / name).unlink(missing_ok=True)
            self._is_committed = True
            _remove(self._folder, keep=self._names())
        except OSError as error:
            raise UserError(f"the shards in {self._folder} cannot be exchanged "
                            f"({disk.cause(error)}); name another --out") from None

    def abort(self) -> None:
        """Take away what was written, and the folders made for it, where it is not committed."""
        if self._is_committed:
            return
        shutil.rmtree(self._stage, ignore_errors=True)
        for name in self._names():
            (self._folder / name).unlink(missing_ok=True)
        for folder in self._made:
            with contextlib.suppress(OSError):
                folder.rmdir()

    def __enter__(self) -> "Writer":
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self.abort()
            return
        try:
            self.finish()
            self.stage()
            self.commit()
        except BaseException:
            self.abort()
            raise

    def _names(self) -> set[str]:
        return {shard[f"{kind}_file"] for shard in self._shards for kind in ("tokens", "documents")}

    def _flush(self) -> None:
        number = f"{self._stem}{len(self._shards):05d}.bin"
        shard: dict[str, Any] = {
            "tokens_file": f"tokens-{number}",
            "documents_file": f"documents-{number}",
            "tokens": self._size,
            "documents": len(self._starts),
            "text_bytes": self._text_bytes,
        }
        self._shards.append(shard)  # before it is written, so that a failure takes it away
        disk.write_whole(self._folder / shard["tokens_file"], np.concatenate(self._pieces).data)
        starts = np.array(self._starts, "<u8")
        disk.write_whole(self._folder / shard["documents_file"], starts.data)
        self._pieces, self._starts, self._size, self._text_bytes = [], [], 0, 0


@contextmanager
def writing(
    folders: Mapping[str, Path],
    tokenizer: Tokenizer,
    *,
    shard_tokens: int = SHARD_TOKENS,
    is_overwriting: bool = False,
) -> Iterator[dict[str, Writer]]:
    """A writer a folder; all are exchanged when all are written, or none is."""
    writers: dict[str, Writer] = {}
    try:
        for name, folder in folders.items():
            writers[name] = Writer(folder, tokenizer, shard_tokens=shard_tokens,
                                   is_overwriting=is_overwriting)
        yield writers
        made = "-".join([writer.finish() for writer in writers.values()])
        for writer in writers.values():
            writer.stage(made)
        for writer in writers.values():
            writer.commit()
    except BaseException:
        for writer in writers.values():
            writer.abort()
        raise


def remove(folder: str | Path) -> None:
    """Delete the shards in `folder`, finished or not, index first, and nothing else."""
    (Path(folder) / INDEX).unlink(missing_ok=True)
    _remove(Path(folder), keep=set())


def _remove(folder: Path, keep: set[str]) -> None:
    """Delete data files that no index names, and what a killed process staged."""
    if not folder.is_dir():
        return
    for path in folder.iterdir():
        if _DATA.fullmatch(path.name) and path.name not in keep:
            path.unlink()
        elif _STAGE.fullmatch(path.name) and path.is_dir():
            shutil.rmtree(path)


def _free_stem(folder: Path) -> str:
    """Beginning of names of data files that the folder does not have yet."""
    there = {path.name.split("-")[1] for path in folder.glob("tokens-*-*.bin")}
    if not any(folder.glob("tokens-?????.bin")):
        return ""
    return next(f"{n}-" for n in range(1, len(there) + 2) if str(n) not in there)
