"""Corpus of a run, ready to be drawn from: a tokenizer, training rows and held-out rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dsjax.config.run import DataConfig, RunConfig
from dsjax.data import pack, shards, sources
from dsjax.data.pack import Rows, TokenStream
from dsjax.data.tokenizers import tokenizer
from dsjax.data.tokenizers.tokenizer import Tokenizer
from dsjax.errors import UserError
from dsjax.train.folder import identity
from dsjax.train.folder.identity import Tokens
from dsjax.train.tokenizer import choose, hold, keep, refuse_tokenizer


@dataclass(frozen=True)
class Corpus:
    """Rows to learn from and rows never learned from, under one tokenizer."""

    tokenizer: Tokenizer
    train: Rows
    heldout: Rows
    token_sizes: np.ndarray  # [V] bytes of text each id stands for
    train_tokens: int
    tokens: Tokens

    def extra(self) -> dict[str, Any]:
        """Return what every checkpoint keeps: fingerprints of the tokenizer and of the text."""
        return identity.extra(self.tokenizer, self.tokens)


def prepare(run: RunConfig, out: Path, say: Callable[[str], None]) -> Corpus:
    """Read, split, tokenize and pack what `run.data` names; keeps the tokenizer in `out`.

    Tokenizer and tokens are held against what the run's checkpoints, or the parameters that it
    starts from, belong to; nothing of theirs is touched before.
    """
    run = dataclasses.replace(run, data=_parts(run.data))
    data = run.data
    if data.train is not None and shards.exist(data.train):
        words, training, heldout = _from_shards(run, out)
    else:
        documents, others = texts(run, say)
        words = choose(run, out, documents, say)
        training = _joined(documents, words, data.fim_rate, run.seed)
        heldout = _joined(others, words, 0.0, run.seed)
    for remark in words.remarks:
        say(remark)
    for name, stream in (("training", training), ("held-out", heldout)):
        if len(stream) < 3:
            raise UserError(f"the {name} text of {data.train or 'the embedded corpus'} has "
                            f"{len(stream)} tokens, ends included, and so none to predict; give "
                            "more text")
    tokens = Tokens(identity.fingerprint(training), identity.fingerprint(heldout))
    identity.hold_tokens(tokens, run, out)
    keep(words, out, say)
    return _pack(run, words, training, heldout, tokens)


def refuse(run: RunConfig, out: Path) -> None:
    """Refuse what can be refused before the text is read: `prepare` would come to the same."""
    data = _parts(run.data)
    if data.train is not None and shards.exist(data.train):
        _want_heldout_shards(data)
        return
    sources.size_on_disk([source for source in (data.train, data.heldout) if source is not None])
    _want_heldout(data)
    refuse_tokenizer(run, out)


def _want_heldout(data: DataConfig) -> None:
    if data.heldout is None and data.heldout_fraction == 0:
        raise UserError(
            "--data.heldout-fraction 0 leaves nothing to evaluate on; name --data.heldout, or use "
            "0.03"
        )


def _want_heldout_shards(data: DataConfig) -> str:
    if data.heldout is None or not shards.exist(data.heldout):
        beside = Path(data.train or "").parent / "heldout"
        has = "is not given" if data.heldout is None else f"is {data.heldout}, which holds none"
        remedy = (f"use --data.heldout {beside}" if shards.exist(beside)
                  else "prepare both with `dsjax data`")
        raise UserError(f"--data.train {data.train} is a folder of shards, so --data.heldout must "
                        f"be one too; it {has}; {remedy}")
    return data.heldout


def _parts(data: DataConfig) -> DataConfig:
    """Name the two folders of shards where --data.train is the folder that holds both."""
    if data.train is None:
        return data
    train = shards.part(data.train, "train")
    heldout = data.heldout if str(train) == data.train else data.heldout or data.train
    if heldout is not None and shards.exist(train):
        heldout = str(shards.part(heldout, "heldout"))
    return dataclasses.replace(data, train=str(train), heldout=heldout)


def texts(run: RunConfig, say: Callable[[str], None] = lambda sentence: None
          ) -> tuple[list[str], list[str]]:
    """Return the training and the held-out documents of a run, as text."""
    data = run.data
    documents = list(sources.documents([data.train or sources.EMBEDDED], say=say))
    if not any(documents):
        raise UserError(f"{data.train} holds no text; give a file or folder with some")
    if data.heldout is not None:
        others = list(sources.documents([data.heldout], say=say))
        if not any(others):
            raise UserError(f"{data.heldout} holds no held-out text; give a file or folder with "
                            "some as --data.heldout")
        return documents, others
    _want_heldout(data)
    return sources.split(documents, data.heldout_fraction, flag="--data.heldout-fraction")


def _joined(documents: Sequence[str], words: Tokenizer, fim_rate: float, seed: int) -> np.ndarray:
    ids = words.encode_batch(documents)
    if fim_rate:
        return pack.joined(pack.fim(ids, words, rate=fim_rate, seed=seed), words.end_id)
    return pack.joined(ids, words.end_id)


def _from_shards(run: RunConfig, out: Path) -> tuple[Tokenizer, TokenStream, TokenStream]:
    """Open prepared shards; held-out shards lie in `data.heldout`."""
    data = run.data
    heldout_shards = _want_heldout_shards(data)
    assert data.train is not None, "shards are named by data.train"
    source = Path(data.tokenizer) if data.tokenizer else Path(data.train) / "tokenizer.json"
    words = tokenizer.load(source, end=data.end_token)
    hold(run, out, words, str(source))
    training, heldout = shards.read(data.train, words), shards.read(heldout_shards, words)
    are_beside = training.folder.parent.resolve() == heldout.folder.parent.resolve()
    if are_beside and None not in (training.made, heldout.made) and training.made != heldout.made:
        raise UserError(
            f"{training.folder} and {heldout.folder} were not made together, so text may be in "
            "both: `dsjax data` was broken off as it exchanged them, or one was put there; "
            "prepare both again")
    return words, training, heldout


def _pack(run: RunConfig, words: Tokenizer, training: TokenStream, heldout: TokenStream,
          tokens: Tokens) -> Corpus:
    cut = pack.concat if run.data.packing == "concat" else pack.segments
    length = run.train.seq_len
    return Corpus(
        tokenizer=words,
        train=cut(training, length, words.end_id),
        heldout=cut(heldout, length, words.end_id),
        token_sizes=tokenizer.token_bytes(words),
        train_tokens=len(training),
        tokens=tokens,
    )
