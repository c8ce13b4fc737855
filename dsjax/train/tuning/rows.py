"""Corpus of fine-tuning: examples packed into rows, some held out, under the model's tokenizer.

A row holds whole examples, best fit first, each a segment of its own: it neither attends to the
others nor learns from them, and rotary positions are relative, so that its loss is that of a row of
its own. Only completions weigh. The split follows from the seed, by example.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from dsjax.config.run import RunConfig
from dsjax.config.sft import SFTConfig
from dsjax.data import pack
from dsjax.data.pack import ArrayRows
from dsjax.data.tokenizers import tokenizer
from dsjax.data.tokenizers.tokenizer import Tokenizer
from dsjax.errors import UserError
from dsjax.serve import template
from dsjax.train import corpus
from dsjax.train.corpus import Corpus
from dsjax.train.folder import identity
from dsjax.train.folder.identity import Tokens
from dsjax.train.tokenizer import choose, keep, refuse_tokenizer
from dsjax.train.tuning import examples
from dsjax.train.tuning.examples import Example, Found

Say = Callable[[str], None]


def prepare(run: RunConfig, out: Path, say: Say) -> Corpus:
    """The corpus of a run: text, or examples where it is fine-tuned; see `corpus.prepare`."""
    if run.sft is None:
        return corpus.prepare(run, out, say)
    words = choose(run, out, [], say)
    for remark in words.remarks:
        say(remark)
    learnt, heldout = split(run, out, words)
    tokens = Tokens(_fingerprint(learnt.examples), _fingerprint(heldout.examples))
    identity.hold_tokens(tokens, run, out)
    keep(words, out, say)
    keep_template(run, out)
    made = Corpus(
        tokenizer=words,
        train=packed(learnt.examples, run.train.seq_len),
        heldout=packed(heldout.examples, run.train.seq_len),
        token_sizes=tokenizer.token_bytes(words),
        train_tokens=examples.sizes(learnt)[0],
        tokens=tokens)
    say(_said(run, made, learnt, heldout))
    return made


def refuse(run: RunConfig, out: Path) -> None:
    """Refuse what can be refused before the data is read; see `corpus.refuse`."""
    if run.sft is None:
        corpus.refuse(run, out)
        return
    if run.init_from is None:
        raise UserError("--sft tunes a model, and there is none to begin with; name its folder by "
                        "--init-from, or run dsjax sft FOLDER")
    if run.train.curriculum:
        raise UserError("--train.curriculum cuts rows, and rows of examples stay whole; leave it "
                        "out")
    for path in filter(None, (_path(run.data.train), _path(run.data.heldout))):
        if not path.is_file():
            raise UserError(f"there is no file {path} of examples; give one with lines of JSON")
    refuse_tokenizer(run, out)


def steps(run: RunConfig, out: Path) -> int:
    """Steps that read the examples as often as the run's epochs say."""
    assert run.sft is not None, "epochs are of examples"
    learnt, _ = split(run, out, choose(run, out, [], lambda sentence: None))
    rows = len(packed(learnt.examples, run.train.seq_len))
    return max(1, round(run.sft.epochs * rows / run.train.batch_size))


def split(run: RunConfig, out: Path, words: Tokenizer) -> tuple[Found, Found]:
    """The examples to learn from, and those that are held out."""
    assert run.sft is not None, "examples are of fine-tuning"
    path = _path(run.data.train)
    if path is None:
        raise UserError("there is nothing to learn from; name a file of examples by --data FILE")
    chat = _template(run, out, words)
    found = _read(path, words, chat, run.sft, run.train.seq_len)
    if (other := _path(run.data.heldout)) is not None:
        return found, _read(other, words, chat, run.sft, run.train.seq_len)
    count = len(found.examples)
    held = min(max(1, round(run.data.heldout_fraction * count)), count - 1)
    if not run.data.heldout_fraction or count < 2:
        raise UserError(f"{path} with {count} example{'s' * (count != 1)} and "
                        f"--data.heldout-fraction {run.data.heldout_fraction} leave nothing to "
                        "evaluate on; name --data.heldout, or use 0.03 and more examples")
    order = np.random.default_rng([run.seed, count]).permutation(count)
    held_out = set(order[:held].tolist())
    parts = [tuple(one for i, one in enumerate(found.examples) if (i in held_out) == is_held)
             for is_held in (False, True)]
    return (dataclasses.replace(found, examples=parts[0]),
            dataclasses.replace(found, examples=parts[1], cut=0, dropped=0))


def packed(of: Sequence[Example], length: int) -> ArrayRows:
    """Pack examples into rows of `length` targets."""
    return pack.whole([one.ids for one in of], length,
                      weights=[[float(flag) for flag in one.is_learned] for one in of])


def _path(source: str | None) -> Path | None:
    return None if source is None else Path(source)


def _read(path: Path, words: Tokenizer, chat: template.ChatTemplate | None, cfg: SFTConfig,
          length: int) -> Found:
    """As `examples.read`; a file that stays as it is, is read once."""
    there = path.stat() if path.is_file() else None
    key = (there.st_size, there.st_mtime_ns) if there else None
    source = None if chat is None else chat.source
    return _remembered((path, key, words.fingerprint, source, cfg, length),
                       lambda: examples.read(path, words, chat, cfg, length))


_last: dict[tuple, Found] = {}


def _remembered(key: tuple, make: Callable[[], Found]) -> Found:
    """The result of the last call with this key: steps are counted before a run reads its rows."""
    if key not in _last:
        made = make()
        while len(_last) > 1:
            _last.pop(next(iter(_last)))
        _last[key] = made
    return _last[key]


def _template(run: RunConfig, out: Path, words: Tokenizer) -> template.ChatTemplate | None:
    """The chat template in the run's folder, or of the weights it begins with."""
    return template.load(out, words) or template.load(str(run.init_from), words)


def keep_template(run: RunConfig, out: Path) -> None:
    """Have the chat template of the weights in the run's folder, where it has none of its own."""
    for place in (Path(str(run.init_from)), Path(str(run.init_from)) / template.RELEASED):
        found = [name for name in (template.SETTINGS, template.ALONE) if (place / name).is_file()]
        if found and not any((out / template.RELEASED / name).is_file() for name in found):
            (out / template.RELEASED).mkdir(exist_ok=True)
            for name in found:
                shutil.copyfile(place / name, out / template.RELEASED / name)
        if found:
            return


def _fingerprint(of: Sequence[Example]) -> str:
    """Fingerprint of ids, and of which are learned."""
    stream = [2 * i + flag for one in of for i, flag in zip(one.ids, one.is_learned, strict=True)]
    return identity.fingerprint(np.asarray(stream, np.int64))


def _said(run: RunConfig, made: Corpus, learnt: Found, heldout: Found) -> str:
    """Describe what was read in a sentence."""
    tokens, learned = examples.sizes(learnt)
    rows, count = len(made.train), len(learnt.examples)
    left = "".join(f", {n:,} {what}" for n, what in (
        (learnt.cut, "cut at the end of a row"), (learnt.dropped, "dropped as too long")) if n)
    mtp = (f"{run.model.mtp_depth} MTP modules learn along" if run.model.mtp_depth else
           "MTP modules are left out")
    return (f"examples: {learnt.form}; {count:,} to learn from{left}, {len(heldout.examples):,} "
            f"held out; {learned:,} of {tokens:,} tokens are learned, in {rows:,} packed rows of "
            f"{run.train.seq_len:,} ({tokens / (rows * (run.train.seq_len + 1)):.0%} full); {mtp}")
