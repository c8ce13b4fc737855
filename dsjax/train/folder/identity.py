"""The identity of a run's weights: its tokenizer and its tokens, kept with every checkpoint.

A tokenizer.json that was exchanged, or another text of as many rows, would go on in silence. So
fingerprints are written with each checkpoint and held against what is there before anything is
touched. A checkpoint from before they were kept is taken as it is.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dsjax.checkpoint import files, multihost, store
from dsjax.config.run import RunConfig
from dsjax.data.pack import TokenStream
from dsjax.data.shards import Shards
from dsjax.data.tokenizers.tokenizer import Tokenizer
from dsjax.errors import UserError

WHOLE = 1 << 26
"""Tokens on disk up to which all are read; of more, `SAMPLES` stretches of `STRETCH`."""
SAMPLES, STRETCH = 1 << 10, 1 << 14
DATA = "data"  # key of a checkpoint's `extra`; the tokenizer's is store.TOKENIZER


@dataclass(frozen=True)
class Tokens:
    """Fingerprints of the two token streams of a run."""

    train: str
    heldout: str


def fingerprint(stream: TokenStream) -> str:
    """Sixteen hex digits of a stream's ids, and of their number.

    Of a large one on disk: of its number of documents and bytes of text, and of samples.
    """
    size, digest = len(stream), hashlib.sha256()
    digest.update(f"{size}".encode())
    if isinstance(stream, Shards) and size > WHOLE:
        digest.update(f"{stream.documents} {stream.text_bytes}".encode())
        starts = [i * (size - STRETCH) // (SAMPLES - 1) for i in range(SAMPLES)]
        stretch = STRETCH
    else:
        stretch = 1 << 22
        starts = list(range(0, size, stretch))
    for start in starts:
        ids = np.asarray(stream[start : start + stretch])
        digest.update(np.ascontiguousarray(ids, "<u4").tobytes())
    return digest.hexdigest()[:16]


def is_going_on(out: Path) -> bool:
    """True if a folder holds a run that goes on."""
    return bool(files.steps(out / "checkpoints"))


def kept(out: Path) -> dict[str, Any]:
    """Return the data beside the arrays of a folder's newest checkpoint; empty where none is."""
    return store.extra(out, multihost.STARTING) if is_going_on(out) else {}


def extra(words: Tokenizer, tokens: Tokens) -> dict[str, Any]:
    """Return the fingerprints that are kept with a checkpoint."""
    return {store.TOKENIZER: words.fingerprint, DATA: asdict(tokens)}


def hold_tokenizer(words: Tokenizer, name: str, out: Path) -> None:
    """Refuse to go on with another tokenizer than the run's own."""
    there = kept(out).get(store.TOKENIZER)
    if there is not None and not words.has_fingerprint(there):
        raise UserError(
            f"{name} is not the tokenizer that the run in {out} was trained with (fingerprint "
            f"{words.fingerprint}, not {there}), so its ids mean other words; put that one back, "
            "or name another --output.folder")


def hold_tokens(tokens: Tokens, run: RunConfig, out: Path) -> None:
    """Refuse to go on with other data than the run has read so far."""
    there = kept(out).get(DATA)
    names = {"train": f"the training text ({run.data.train or 'the embedded corpus'})",
             "heldout": f"the held-out text ({run.data.heldout or 'a share of the training text'})"}
    for part, name in names.items():
        was = there.get(part) if isinstance(there, dict) else None
        if was not in (None, getattr(tokens, part)):
            raise UserError(
                f"{name} has changed since the run in {out} read it (fingerprint of its tokens "
                f"{getattr(tokens, part)}, not {was}); put it back, or begin another run from its "
                f"parameters: --init-from {out} --output.folder ANOTHER")
