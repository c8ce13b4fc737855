"""Weights belong to a tokenizer and a run to its text: another is refused, or taken knowingly."""

import dataclasses
import random
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from dsjax.checkpoint.store import Store
from dsjax.config.stored import run_to_json
from dsjax.data import shards
from dsjax.data.tokenizers import tokenizer
from dsjax.errors import UserError
from dsjax.train.corpus import prepare
from dsjax.train.folder import identity, resume
from tests.train.small_run import small_run


def text(seed: int = 0, letters: str = "abcdefgh") -> str:
    draw = random.Random(seed)
    words = ["".join(draw.choices(letters, k=draw.randint(2, 5))) for _ in range(40)]
    return "".join(" ".join(draw.choices(words, k=9)) + ".\n" for _ in range(300))


def changed(run, **fields):
    return dataclasses.replace(run, data=dataclasses.replace(run.data, **fields))


def saved(folder: Path, extra: dict) -> None:
    """A folder with a checkpoint that keeps `extra`."""
    store = Store(folder / "checkpoints", 1)
    store.save(1, {"x": jnp.ones(2)}, extra)
    store.close()


def read(run, said=None) -> object:
    return prepare(run, Path(run.output.folder), (lambda _: None) if said is None else said.append)


def content(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def run(tmp_path):
    (tmp_path / "plain.txt").write_text(text())
    return small_run(tmp_path / "out", tmp_path / "plain.txt")


@pytest.fixture
def other(tmp_path):
    """Another tokenizer of as many ids, as a file."""
    path = tmp_path / "other.json"
    tokenizer.train_bpe([text(1, "stuvwxyz")], 300).save(path)
    return path


@pytest.fixture
def started(run, tmp_path, other):
    """A run that starts from one trained with the other tokenizer."""
    words = tokenizer.load(other)
    saved(tmp_path / "start", {"tokenizer": words.fingerprint})
    words.save(tmp_path / "start" / "tokenizer.json")
    return dataclasses.replace(run, init_from=str(tmp_path / "start"))


def test_a_start_brings_its_own_tokenizer_and_says_so(started, other):
    said = []
    corpus = read(started, said)
    assert corpus.tokenizer.fingerprint == tokenizer.load(other).fingerprint
    assert said == [f"reading with the tokenizer of {started.init_from}, which its parameters "
                    "belong to"]
    assert read(changed(started, tokenizer=str(other))).tokenizer.source == corpus.tokenizer.source


def test_another_tokenizer_than_the_starts_is_refused_by_fingerprint(started, run, tmp_path):
    mine = read(run).tokenizer  # trained on the text
    path = tmp_path / "mine.json"
    mine.save(path)
    before = content(tmp_path)
    with pytest.raises(UserError, match=r"mine.json is not the tokenizer.*--init-from") as raised:
        read(changed(started, tokenizer=str(path)))
    assert mine.fingerprint in str(raised.value)
    assert "--data.tokenizer" in str(raised.value)
    assert content(tmp_path) == before


def test_a_start_whose_tokenizer_was_exchanged_is_refused(started, run):
    tokenizer.train_bpe([text(2)], 300).save(Path(started.init_from) / "tokenizer.json")
    with pytest.raises(UserError, match=r"tokenizer.json is not the tokenizer"):
        read(started)


def test_a_start_without_tokenizer_wants_one_named(started, other):
    (Path(started.init_from) / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"has no tokenizer.json.*--data.tokenizer"):
        read(started)
    assert read(changed(started, tokenizer=str(other))).tokenizer.vocab <= 300


def test_shards_of_another_tokenizer_are_no_text_for_a_start(started, run, tmp_path):
    words = read(run).tokenizer
    for part in ("train", "heldout"):
        with shards.Writer(tmp_path / part, words) as writer:
            writer.add(words.encode(text()), 1)
    there = changed(started, train=str(tmp_path / "train"), heldout=str(tmp_path / "heldout"))
    with pytest.raises(UserError, match=r"not the tokenizer.*dsjax data --tokenizer"):
        read(there)


def test_a_run_goes_on_only_with_its_own_tokenizer(run, other):
    out = Path(run.output.folder)
    corpus = read(run)
    saved(out, corpus.extra())
    assert read(run).tokens == corpus.tokens
    (out / "tokenizer.json").write_bytes(other.read_bytes())
    before = content(out)
    with pytest.raises(UserError, match=r"out/tokenizer.json is not the tokenizer") as raised:
        read(run)
    assert corpus.tokenizer.fingerprint in str(raised.value)
    assert content(out) == before
    (out / "tokenizer.json").unlink()  # trained anew on the same text it is the same
    assert read(run).tokenizer.fingerprint == corpus.tokenizer.fingerprint


def test_a_named_tokenizer_that_was_exchanged_leaves_the_runs_own_alone(run, other):
    named = changed(run, tokenizer=str(other))
    corpus = read(named)
    out = Path(run.output.folder)
    saved(out, corpus.extra())
    tokenizer.train_bpe([text(5)], 300).save(other)
    before = content(out)
    with pytest.raises(UserError, match=r"other.json is not the tokenizer that the run"):
        read(named)
    assert content(out) == before


@pytest.mark.parametrize("part", ["train", "heldout"])
def test_another_text_of_as_many_rows_is_refused_by_name(part, run, other, tmp_path):
    (tmp_path / "held.txt").write_text(text(7))
    run = changed(run, tokenizer=str(other), heldout=str(tmp_path / "held.txt"))
    corpus = read(run)
    saved(tmp_path / "out", corpus.extra())
    path = tmp_path / {"train": "plain.txt", "heldout": "held.txt"}[part]
    path.write_text(path.read_text().translate(str.maketrans("ab", "ba")))
    before = content(tmp_path)
    with pytest.raises(UserError, match=rf"{path.name}\) has changed") as raised:
        read(run)
    assert getattr(corpus.tokens, part) in str(raised.value)
    assert "--init-from" in str(raised.value)
    assert content(tmp_path) == before


def test_the_same_text_in_another_place_is_the_same_run(run, other, tmp_path):
    run = changed(run, tokenizer=str(other))
    saved(tmp_path / "out", read(run).extra())
    run_to_json(run, tmp_path / "out" / "config.json")
    (tmp_path / "plain.txt").rename(tmp_path / "moved.txt")
    moved = changed(run, train=str(tmp_path / "moved.txt"))
    resume.refuse_another(moved, tmp_path / "out")
    read(moved)
    assert any("data.train" in said for said in resume.changed(run, moved, 1))
    with pytest.raises(UserError, match="fim_rate"):
        resume.refuse_another(changed(moved, fim_rate=0.5), tmp_path / "out")


def test_shards_that_were_exchanged_are_refused(run, other, tmp_path):
    words = tokenizer.load(other)

    def write(seed):
        for part, offset in (("train", 0), ("heldout", 9)):
            with shards.Writer(tmp_path / part, words, is_overwriting=True) as writer:
                writer.add(np.random.default_rng(seed + offset).integers(10, 99, 500), 1)

    write(0)
    there = changed(run, train=str(tmp_path / "train"), heldout=str(tmp_path / "heldout"))
    saved(tmp_path / "out", read(there).extra())
    write(0)
    read(there)  # prepared again, the same
    write(1)
    with pytest.raises(UserError, match=r"training text .* has changed"):
        read(there)


def test_checkpoints_from_before_identities_were_kept_are_taken(run, other):
    read(run)
    out = Path(run.output.folder)
    saved(out, {"stream": {}, "loads": None})
    (out / "tokenizer.json").write_bytes(other.read_bytes())
    assert read(run).tokenizer.fingerprint == tokenizer.load(other).fingerprint


def test_a_tokenizer_left_by_an_abandoned_start_is_no_other_corpus(run, other, tmp_path):
    said, out = [], Path(run.output.folder)
    first = read(run, said)
    assert "training a byte-level BPE" in said[0]
    assert read(run, said).tokenizer.source == first.tokenizer.source
    assert len(said) == 1  # the same text: it was not trained again
    (tmp_path / "plain.txt").write_text(text(3, "ijklmnop"))
    second = read(run, said)
    assert second.tokenizer.fingerprint != first.tokenizer.fingerprint
    assert "tokenizer.before.json" in said[2]
    assert (out / "tokenizer.before.json").read_text() == first.tokenizer.source
    for damaged in (b"", b"{", other.read_bytes()):  # of unknown origin
        (out / "tokenizer.json").write_bytes(damaged)
        (out / "corpus.json").unlink(missing_ok=True)
        assert read(run).tokenizer.source == second.tokenizer.source
    assert len(list(out.glob("tokenizer.before*.json"))) == 4


def test_the_fingerprint_is_of_the_ids_wherever_they_lie(tmp_path, other, monkeypatch):
    words = tokenizer.load(other)
    ids = np.random.default_rng(0).integers(0, words.vocab, 5000)
    with shards.Writer(tmp_path, words, shard_tokens=1000) as writer:
        for part in np.split(ids, 5):
            writer.add(part, 3)
    there = shards.read(tmp_path)
    whole = identity.fingerprint(there)
    assert whole == identity.fingerprint(np.asarray(there[0 : len(there)], np.int64))
    assert whole != identity.fingerprint(np.asarray(there[0 : len(there) - 1]))
    for name, value in {"WHOLE": 100, "SAMPLES": 7, "STRETCH": 50}.items():
        monkeypatch.setattr(identity, name, value)
    sampled = identity.fingerprint(there)
    assert sampled == identity.fingerprint(shards.read(tmp_path)) != whole


def test_held_out_text_of_nothing_is_named(run, tmp_path):
    (tmp_path / "held.txt").write_text("")
    with pytest.raises(UserError, match=r"held.txt"):
        read(changed(run, heldout=str(tmp_path / "held.txt")))
