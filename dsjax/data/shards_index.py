"""The index of a folder of shards, checked before it is believed: it may come from elsewhere.

Kinds, counts, sizes, names and dtypes are held against the files, and ids against the vocabulary:
all of them on opening where there are at most `CHECKED` in a file (a tenth of a second), and in any
case those that are read.
"""

import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dsjax import disk
from dsjax.data.tokenizers.tokenizer import Tokenizer
from dsjax.errors import UserError

FORMAT = "dsjax tokens 1"
INDEX = "index.json"
TOKENIZER = "tokenizer.json"
CHECKED = 2**27
REMEDY = "prepare it again with `dsjax data`"
_INDEX_BYTES = 64 << 20
_DTYPES = ("<u2", "<u4")


@dataclass(frozen=True)
class Opened:
    """A checked index, and the files it lists."""

    vocab: int
    fingerprint: str
    end_id: int
    text_bytes: int
    files: tuple[np.ndarray, ...]
    document_starts: tuple[np.ndarray, ...]
    made: str | None


def read(folder: Path, tokenizer: Tokenizer | None = None) -> Opened:
    """Open what the index of `folder` lists; with `tokenizer`, refuse shards made with another."""
    index = disk.read_object(folder / INDEX, REMEDY, _INDEX_BYTES)
    if index.get("format") != FORMAT:
        raise broken(folder, f"the format {str(index.get('format'))[:40]!r}, not {FORMAT!r}")
    if index.get("dtype") not in _DTYPES:
        raise broken(folder, f"the dtype {str(index.get('dtype'))[:40]!r}, not one of {_DTYPES}")
    dtype = np.dtype(index["dtype"])
    vocab = _count(folder, index, "vocab", 1, 2 ** (8 * dtype.itemsize))
    end_id = _count(folder, index, "end_id", 0, vocab - 1)
    fingerprint = index.get("tokenizer")
    if not isinstance(fingerprint, str):
        raise broken(folder, "no fingerprint of a tokenizer")
    if tokenizer is not None:
        _match(folder, tokenizer, fingerprint, vocab, end_id)
    listed = index.get("shards")
    if not isinstance(listed, list) or not listed:
        raise broken(folder, "no list of shards")
    opened = [_open(folder, shard, dtype) for shard in listed]
    for tokens, starts in opened:
        if len(tokens) <= CHECKED:
            check_ids(tokens, vocab, folder)
        if len(starts) <= CHECKED:
            _check_starts(starts, len(tokens), folder)
    return Opened(
        vocab=vocab,
        fingerprint=fingerprint,
        end_id=end_id,
        text_bytes=sum(_count(folder, shard, "text_bytes", 0, 2**60) for shard in listed),
        files=tuple(tokens for tokens, _ in opened),
        document_starts=tuple(starts for _, starts in opened),
        made=str(index["made"]) if "made" in index else None,
    )


def _match(folder: Path, tokenizer: Tokenizer, fingerprint: str, vocab: int, end_id: int) -> None:
    """Refuse shards of another tokenizer than the one at hand."""
    if not tokenizer.has_fingerprint(fingerprint):
        raise UserError(
            f"{folder} was made with tokenizer {fingerprint}, not {tokenizer.fingerprint}, so its "
            "ids mean other words; prepare training and held-out text in one `dsjax data`, or the "
            "second with --tokenizer TRAIN/tokenizer.json, and leave --data.tokenizer out"
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
        raise broken(folder, f"{str(value)[:40]} as {name}, which is a whole number from {least} "
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
        raise broken(folder, f"{str(name)[:60]!r} as a file, which must lie in the folder itself")
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


def check_ids(ids: np.ndarray, vocab: int, folder: Path) -> None:
    """Refuse ids outside the vocabulary."""
    if vocab < 2 ** (8 * ids.dtype.itemsize) and ids.size and (most := int(ids.max())) >= vocab:
        raise UserError(f"{folder} holds the id {most:,}, outside its vocabulary of {vocab:,}; "
                        f"{REMEDY}")


def _check_starts(starts: np.ndarray, tokens: int, folder: Path) -> None:
    if int(starts[-1]) >= tokens or bool((starts[1:] <= starts[:-1]).any()):
        raise broken(folder, f"starts of documents that are not in order within {tokens:,} tokens")


def broken(folder: Path, what: str) -> UserError:
    """Return the refusal of an index that has what none of ours has."""
    return UserError(f"{folder / INDEX} is no shard index: it has {what}; {REMEDY}")
