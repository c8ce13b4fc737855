"""Tokenizer that a run reads with: the one its weights belong to, or one trained on its text.

In this order: --data.tokenizer; of a run that goes on, its own; of one that starts from another's
parameters, that one's, whose ids they know; else one is trained. A tokenizer.json that an abandoned
start has left is used again only if `corpus.json` beside it says that it was trained on this text.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from dsjax import disk, weights
from dsjax.checkpoint import store
from dsjax.config.flags import refusal
from dsjax.config.run import RunConfig
from dsjax.data.tokenizers import tokenizer
from dsjax.data.tokenizers.tokenizer import Tokenizer
from dsjax.errors import UserError
from dsjax.runtime import fit
from dsjax.train.folder import identity

Say = Callable[[str], None]
FILE, RECORD = "tokenizer.json", "corpus.json"


def choose(run: RunConfig, out: Path, training: Sequence[str], say: Say) -> Tokenizer:
    """The tokenizer of a run that reads text, held against what its weights belong to."""
    own = out / FILE
    is_going_on = identity.is_going_on(out)
    if run.data.tokenizer is not None:
        words = tokenizer.load(run.data.tokenizer, end=run.data.end_token)
        name = run.data.tokenizer
    elif is_going_on and own.exists():
        words, name = tokenizer.load(own, end=run.data.end_token), str(own)
    elif run.init_from is not None and not is_going_on:
        words, name = _of_start(run, say), str(Path(run.init_from) / FILE)
    else:
        words, name = _trained(run, out, training, say), "one trained anew on the text"
    hold(run, out, words, name)
    return words


def refuse_tokenizer(run: RunConfig, out: Path) -> None:
    """Refuse what `choose` would refuse, as far as it can be told without the text."""
    is_going_on = identity.is_going_on(out)
    is_starting = run.init_from is not None and not is_going_on
    if is_starting:
        weights.refuse_empty(str(run.init_from), "--init-from")
    if run.data.tokenizer is not None:
        words = tokenizer.load(run.data.tokenizer, end=run.data.end_token)
        hold(run, out, words, run.data.tokenizer)
    elif is_starting:
        _file_of_start(run)
    elif not (is_going_on and (out / FILE).exists()) and run.model.vocab < tokenizer.SMALLEST:
        raise UserError(
            f"--model.vocab {run.model.vocab} is below the {tokenizer.SMALLEST} ids of a BPE that "
            f"is trained on text (256 bytes and special tokens); use {tokenizer.SMALLEST} or more, "
            "or give a --data.tokenizer")


def hold(run: RunConfig, out: Path, words: Tokenizer, name: str) -> None:
    """Refuse a tokenizer that the parameters a run begins or goes on with do not belong to."""
    if identity.is_going_on(out):
        identity.hold_tokenizer(words, name, out)
    elif run.init_from is not None:
        _hold_start(run.init_from, words, name)
    if words.vocab > run.model.vocab:
        raise UserError(
            f"the tokenizer has {words.vocab:,} ids but the model's vocabulary is "
            f"{run.model.vocab:,}; set --model.vocab {words.vocab} or give a smaller tokenizer"
        )


def keep(words: Tokenizer, out: Path, say: Say) -> None:
    """Have the tokenizer in the run's folder; another one that was there is set aside."""
    disk.make_folder(out, "name another --output.folder")
    own = out / FILE
    if os.path.lexists(own):
        if own.is_file() and own.read_bytes() == words.source.encode():
            words.save(own)  # what lies beside it
            return
        aside = disk.free_name(out / "tokenizer.before.json")
        os.replace(own, aside)
        say(f"{own} is of another corpus or run: it is kept as {aside.name}")
    words.save(own)


def _file_of_start(run: RunConfig) -> Path:
    path = Path(str(run.init_from)) / FILE
    if not path.exists():
        raise UserError(f"--init-from {run.init_from} has no {FILE}, so what its ids mean is not "
                        "known; name the tokenizer it was trained with as --data.tokenizer")
    return path


def _of_start(run: RunConfig, say: Say) -> Tokenizer:
    words = tokenizer.load(_file_of_start(run), end=run.data.end_token)
    say(f"reading with the tokenizer of {run.init_from}, which its parameters belong to")
    return words


def _hold_start(start: str, words: Tokenizer, name: str) -> None:
    """Refuse another tokenizer than that of the parameters a run starts from."""
    path = Path(start) / FILE
    there = None if weights.is_released(start) else store.tokenizer_of(start)
    if there is None and path.exists():
        there = tokenizer.load(path).fingerprint
    if there is not None and not words.has_fingerprint(there):
        raise UserError(
            f"{name} is not the tokenizer that the parameters of --init-from {start} belong to "
            f"(fingerprint {words.fingerprint}, not {there}), so its ids mean other words; leave "
            "--data.tokenizer out to use theirs, and prepare shards with it: "
            f"dsjax data --tokenizer {path}")


def _trained(run: RunConfig, out: Path, training: Sequence[str], say: Say) -> Tokenizer:
    """A tokenizer of this text: the one an earlier start has left, if it is that, or a new one."""
    made_of = {"text": _digest(training), "vocab": run.model.vocab}
    own, record = out / FILE, out / RECORD
    if own.is_file() and record.is_file():
        left = disk.read_object(record, "remove it")
        if {name: left.get(name) for name in made_of} == made_of:
            words = tokenizer.load(own)
            if words.fingerprint == left.get("tokenizer"):
                return words
    size = fit.said(sum(map(len, training)))
    say(f"training a byte-level BPE of {run.model.vocab:,} ids on {size} of text")
    with refusal.typed_as("model.vocab"):
        words = tokenizer.train_bpe(training, run.model.vocab)
    if not identity.is_going_on(out):
        disk.make_folder(out, "name another --output.folder")
        disk.write_whole(record, json.dumps(made_of | {"tokenizer": words.fingerprint}) + "\n")
    return words


def _digest(documents: Sequence[str]) -> str:
    """Fingerprint of texts."""
    digest = hashlib.sha256()
    for document in documents:
        data = document.encode("utf-8", "surrogatepass")
        digest.update(f"{len(data)} ".encode())
        digest.update(data)
    return digest.hexdigest()[:16]
