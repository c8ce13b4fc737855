"""What a run reads, ready to be drawn from: a tokenizer, training rows and held-out rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dsjax.config.run import RunConfig
from dsjax.data import pack, shards, sources, tokenizer
from dsjax.data.pack import Rows, TokenStream
from dsjax.data.tokenizer import Tokenizer
from dsjax.errors import UserError


@dataclass(frozen=True)
class Corpus:
    """Rows to learn from and rows never learned from, under one tokenizer."""

    tokenizer: Tokenizer
    train: Rows
    heldout: Rows
    token_sizes: np.ndarray  # [V] bytes of text each id stands for
    train_tokens: int


def prepare(run: RunConfig, out: Path, say: Callable[[str], None]) -> Corpus:
    """Read, split, tokenize and pack what `run.data` names; keeps the tokenizer in `out`.

    A tokenizer.json already in `out` is used again, so that a resumed run reads the same ids.
    """
    data = run.data
    if data.train is not None and shards.exist(data.train):
        return _from_shards(run, out)
    training, heldout = texts(run)
    kept = out / "tokenizer.json"
    if data.tokenizer is not None:
        words = tokenizer.load(data.tokenizer)
    elif kept.exists():
        words = tokenizer.load(kept)
    else:
        size = sum(map(len, training)) / 1e6
        say(f"training a byte-level BPE of {run.model.vocab:,} ids on {size:.1f} MB of text")
        words = tokenizer.train_bpe(training, run.model.vocab)
    _check_vocab(words, run)
    _keep(words, out)
    stream = _joined(training, words, data.fim_rate, run.seed)
    return _pack(run, words, stream, _joined(heldout, words, 0.0, run.seed))


def texts(run: RunConfig) -> tuple[list[str], list[str]]:
    """Return the training and the held-out documents of a run, as text."""
    data = run.data
    documents = list(sources.documents([data.train or sources.EMBEDDED]))
    if not any(documents):
        raise UserError(f"{data.train} holds no text; give a file or folder with some")
    if data.heldout is not None:
        return documents, list(sources.documents([data.heldout]))
    if data.heldout_fraction == 0:
        raise UserError(
            "data.heldout_fraction=0 leaves nothing to evaluate on; name data.heldout or use 0.03"
        )
    return sources.split(documents, data.heldout_fraction)


def _joined(documents: Sequence[str], words: Tokenizer, fim_rate: float, seed: int) -> np.ndarray:
    ids = words.encode_batch(documents)
    if fim_rate:
        return pack.joined(pack.fim(ids, words, rate=fim_rate, seed=seed), words.end_id)
    return pack.joined(ids, words.end_id)


def _from_shards(run: RunConfig, out: Path) -> Corpus:
    """Open prepared shards; held-out shards lie in `data.heldout`."""
    data = run.data
    if data.heldout is None or not shards.exist(data.heldout):
        raise UserError(
            f"data.train={data.train} is a folder of shards, so data.heldout must be one too; "
            f"it is {data.heldout}; prepare both with `dsjax data`"
        )
    assert data.train is not None, "shards are named by data.train"
    source = Path(data.tokenizer) if data.tokenizer else Path(data.train) / "tokenizer.json"
    words = tokenizer.load(source)
    _check_vocab(words, run)
    _keep(words, out)
    return _pack(run, words, shards.read(data.train, words), shards.read(data.heldout, words))


def _pack(run: RunConfig, words: Tokenizer, training: TokenStream,
          heldout: TokenStream) -> Corpus:
    cut = pack.concat if run.data.packing == "concat" else pack.segments
    length = run.train.length
    return Corpus(
        tokenizer=words,
        train=cut(training, length, words.end_id),
        heldout=cut(heldout, length, words.end_id),
        token_sizes=tokenizer.token_bytes(words),
        train_tokens=len(training),
    )


def _keep(words: Tokenizer, out: Path) -> None:
    """Make the run's folder, now that its input has been found good, and keep the tokenizer."""
    out.mkdir(parents=True, exist_ok=True)
    words.save(out / "tokenizer.json")


def _check_vocab(words: Tokenizer, run: RunConfig) -> None:
    if words.vocab > run.model.vocab:
        raise UserError(
            f"the tokenizer has {words.vocab:,} ids but the model's vocabulary is "
            f"{run.model.vocab:,}; set --model.vocab {words.vocab} or give a smaller tokenizer"
        )
