"""Token ids on disk: a folder of flat binary files, read as memory maps, and a small JSON index.

The files in order are one stream: the end token, then every document followed by the end token (the
leading one makes the first token of the first document a target too). `documents-*.bin` holds, for
each file, where its documents start (uint64, in tokens of that file). The tokenizer lies beside
them as tokenizer.json. `shards_write` makes them; a folder with an index is whole.

An index may come from elsewhere, so nothing in it is believed: kinds, counts, sizes, names and
dtypes are held against the files, and ids against the vocabulary: all of them on opening where
there are at most `CHECKED` in a file (a tenth of a second), and in any case those that are read.

Limits: documents do not span files; byte order is little-endian.
"""

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dsjax import disk
from dsjax.data.tokenizer import Tokenizer
from dsjax.errors import UserError

FORMAT = "dsjax tokens 1"
INDEX = "index.json"
TOKENIZER = "tokenizer.json"
PARTS = ("train", "heldout")
"""Folders that `dsjax data` writes into its --out."""
CHECKED = 2**27
REMEDY = "prepare it again with `dsjax data`"
_INDEX_BYTES = 64 << 20
_DTYPES = ("<u2", "<u4")


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
                part = file[max(start - base, 0) : stop - base]
                _check_ids(part, self.vocab, self.folder)
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
                    raise _broken(self.folder, f"a document from {start:,} to {stop:,}")
                document = file[start : stop - 1]
                _check_ids(document, self.vocab, self.folder)
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
    folder = Path(folder)
    index = disk.read_object(folder / INDEX, REMEDY, _INDEX_BYTES)
    if index.get("format") != FORMAT:
        raise _broken(folder, f"the format {str(index.get('format'))[:40]!r}, not {FORMAT!r}")
    if index.get("dtype") not in _DTYPES:
        raise _broken(folder, f"the dtype {str(index.get('dtype'))[:40]!r}, not one of {_DTYPES}")
    dtype = np.dtype(index["dtype"])
    vocab = _count(folder, index, "vocab", 1, 2 ** (8 * dtype.itemsize))
    end_id = _count(folder, index, "end_id", 0, vocab - 1)
    fingerprint = index.get("tokenizer")
    if not isinstance(fingerprint, str):
        raise _broken(folder, "no fingerprint of a tokenizer")
    if tokenizer is not None:
        _match(folder, tokenizer, fingerprint, vocab, end_id)
    listed = index.get("shards")
    if not isinstance(listed, list) or not listed:
        raise _broken(folder, "no list of shards")
    opened = [_open(folder, shard, dtype) for shard in listed]
    for tokens, starts in opened:
        if len(tokens) <= CHECKED:
            _check_ids(tokens, vocab, folder)
        if len(starts) <= CHECKED:
            _check_starts(starts, len(tokens), folder)
    return Shards(
        folder=folder,
        vocab=vocab,
        fingerprint=fingerprint,
        end_id=end_id,
        text_bytes=sum(_count(folder, shard, "text_bytes", 0, 2**60) for shard in listed),
        files=tuple(tokens for tokens, _ in opened),
        document_starts=tuple(starts for _, starts in opened),
    )


def _match(folder: Path, tokenizer: Tokenizer, fingerprint: str, vocab: int, end_id: int) -> None:
    """Refuse shards of another tokenizer than the one at hand."""
    if not tokenizer.has_fingerprint(fingerprint):
        raise UserError(
            f"{folder} was made with tokenizer {fingerprint}, not {tokenizer.fingerprint}; "
            "use the tokenizer.json written beside it"
        )
    if vocab != tokenizer.vocab:
        raise UserError(f"{folder} was made with {vocab:,} ids, but its tokenizer has "
                        f"{tokenizer.vocab:,}; {REMEDY}")
    if end_id != tokenizer.end_id:
        name = tokenizer.core.id_to_token(end_id)
        raise UserError(f"{folder} ends its documents with {name} (id {end_id}), but the tokenizer "
                        f"says {tokenizer.core.id_to_token(tokenizer.end_id)} (id "
                        f"{tokenizer.end_id}); name the end token with --data.end-token, or "
                        f"{REMEDY}")


def _count(folder: Path, of: Any, name: str, least: int, most: int) -> int:
    """A whole number of an index, within bounds."""
    value = of.get(name) if isinstance(of, dict) else None
    if type(value) is not int or not least <= value <= most:
        raise _broken(folder, f"{str(value)[:40]} as {name}, which is a whole number from {least} "
                              f"to {most:,}")
    return value


def _open(folder: Path, shard: Any, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    """Memory maps of the tokens and the starts of documents of one shard."""
    documents = _count(folder, shard, "documents", 1, 2**48)
    tokens = _count(folder, shard, "tokens", documents, 2**48)
    return (
        _map(folder, shard.get("tokens_file"), dtype, tokens),
        _map(folder, shard.get("documents_file"), np.dtype("<u8"), documents),
    )


def _map(folder: Path, name: Any, dtype: np.dtype, count: int) -> np.ndarray:
    if not isinstance(name, str) or name in ("", ".", "..") or set(name) & set("/\\\0"):
        raise _broken(folder, f"{str(name)[:60]!r} as a file, which must lie in the folder itself")
    path, expected = folder / name, count * dtype.itemsize
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise UserError(f"{path} is no regular file; {REMEDY}")
        if found.st_size != expected:
            raise UserError(f"{path} has {found.st_size:,} bytes where its index says "
                            f"{expected:,}; {REMEDY}")
        return np.memmap(path, dtype, "r")
    except FileNotFoundError:
        raise UserError(f"{path} is missing; {REMEDY}") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({disk.cause(error)}); {REMEDY}") from None


def _check_ids(ids: np.ndarray, vocab: int, folder: Path) -> None:
    if vocab < 2 ** (8 * ids.dtype.itemsize) and ids.size and (most := int(ids.max())) >= vocab:
        raise UserError(f"{folder} holds the id {most:,}, outside its vocabulary of {vocab:,}; "
                        f"{REMEDY}")


def _check_starts(starts: np.ndarray, tokens: int, folder: Path) -> None:
    if int(starts[-1]) >= tokens or bool((starts[1:] <= starts[:-1]).any()):
        raise _broken(folder, f"starts of documents that are not in order within {tokens:,} tokens")


def _broken(folder: Path, what: str) -> UserError:
    return UserError(f"{folder / INDEX} is no shard index: it has {what}; {REMEDY}")
