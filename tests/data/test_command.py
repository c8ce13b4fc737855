"""`dsjax data` writes shards that hold the sources' text, whole, split, under their tokenizer."""

import json

import numpy as np
import pytest

from dsjax.cli.data import Data, main
from dsjax.config.flags.commandline import read
from dsjax.data import shards, sources
from dsjax.data.tokenizers import tokenizer as tok
from dsjax.errors import UserError


@pytest.fixture
def text(tmp_path):
    works = sources.shakespeare()[:4]
    path = tmp_path / "works.jsonl"
    path.write_text("".join(json.dumps({"text": work[:40_000]}) + "\n" for work in works))
    return path


def run(capsys, *argv):
    assert main(read(Data, [str(a) for a in argv], "dsjax data")) == 0
    return capsys.readouterr().out


def words_of(folder):
    words = tok.load(folder / "tokenizer.json")
    read = shards.read(folder, words)
    return [words.decode(read.document(i).tolist()) for i in range(read.documents)]


def test_shards_hold_the_split_text_and_the_summary_counts_it(text, tmp_path, capsys):
    out = run(capsys, text, "--out", tmp_path, "--vocab", 400, "--heldout-fraction", 0.1, "--json")
    train, heldout = sources.split(sources.documents([text]), 0.1)
    assert words_of(tmp_path / "train") == train
    assert words_of(tmp_path / "heldout") == heldout
    summary = json.loads(out)
    assert summary["train"]["text_bytes"] == sum(len(t.encode()) for t in train)
    assert summary["heldout"]["documents"] == len(heldout)
    assert summary["train"]["vocab"] == 400
    # the tokenizer has not seen the held-out text
    again = tok.train_bpe(train, 400)
    assert summary["train"]["tokenizer"] == again.fingerprint


def test_a_given_tokenizer_is_used_and_fim_touches_training_text_only(text, tmp_path, capsys):
    bpe = tok.train_bpe(["a few words\n"], 260)
    bpe.save(tmp_path / "bpe.json.gz")
    argv = (
        text,
        "--tokenizer",
        tmp_path / "bpe.json.gz",
        "--fim-rate",
        0.5,
        "--shard-tokens",
        9000,
    )
    run(capsys, *argv, "--out", tmp_path / "a")
    run(capsys, *argv, "--out", tmp_path / "b")
    train = shards.read(tmp_path / "a/train", bpe)
    heldout = shards.read(tmp_path / "a/heldout", bpe)
    documents = [train.document(i) for i in range(train.documents)]
    fim = [np.isin([1, 2, 3], d).all() for d in documents]
    assert 0 < sum(fim) < len(fim)
    assert not np.isin([1, 2, 3], heldout[:]).any()
    assert len(train.files) > 1
    assert (shards.read(tmp_path / "b/train", bpe)[:] == train[:]).all()
    sizes = tok.token_bytes(bpe)
    assert sum(sizes[d].sum() for d in documents) == train.text_bytes


def test_a_terminal_gets_a_bar_and_a_file_gets_lines(text, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("dsjax.cli.data.SECONDS_A_LINE", 0)
    argv = (text, "--vocab", 300, "--overwrite", "--out", tmp_path)
    main(read(Data, [str(a) for a in argv], "dsjax data"))
    plain = capsys.readouterr()
    assert "tokenizing: 0.2 of 0.2 MB read" in plain.err
    assert "bytes a token" in plain.out
    monkeypatch.setenv("FORCE_COLOR", "1")
    main(read(Data, [str(a) for a in argv], "dsjax data"))
    assert "\x1b[" in capsys.readouterr().err


def test_existing_shards_are_kept_unless_overwritten(text, tmp_path, capsys):
    run(capsys, text, "--out", tmp_path, "--vocab", 300)
    with pytest.raises(UserError, match="train holds shards"):
        main(Data(sources=(str(text),), out=tmp_path))
    run(capsys, text, "--out", tmp_path, "--vocab", 310, "--heldout-fraction", 0, "--overwrite")
    assert "".join(words_of(tmp_path / "train")) == "".join(sources.documents([text]))
    assert not shards.exist(tmp_path / "heldout")


def test_wrong_arguments_are_refused_before_anything_is_written(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.txt does not exist"):
        main(Data(sources=("nowhere.txt",), out=tmp_path / "out"))
    with pytest.raises(UserError, match="--fim-rate 2"):
        main(Data(fim_rate=2, out=tmp_path / "out"))
    with pytest.raises(UserError, match=r"outside \[0, 1\)"):
        main(Data(heldout_fraction=1, out=tmp_path / "out"))
    with pytest.raises(UserError, match="choose at least 260"):
        main(Data(vocab=100, out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_text_too_short_for_the_ids_asked_for_is_said(tmp_path, capsys):
    (tmp_path / "a.txt").write_text("some words\n" * 30)
    assert main(Data(sources=(str(tmp_path / "a.txt"),), out=tmp_path / "a", vocab=100_000,
                     heldout_fraction=0.3)) == 0
    said = capsys.readouterr()
    made = tok.load(tmp_path / "a/train/tokenizer.json").vocab
    assert f"too short for 100,000 ids: it gives a tokenizer of {made:,}" in said.err
    assert f"--model.vocab {made} " in said.out
