"""A clean corpus has no hit, keeps the rest byte for byte, and is there whole or not at all."""

import gzip
import json
import lzma
import random

import numpy as np
import pytest

from dsjax.data import readers, shards
from dsjax.data.tokenizers import tokenizer as tok
from dsjax.errors import UserError
from dsjax.evaluate.audit import clean, corpus, findings, items, scan
from dsjax.evaluate.audit.clean import LEAST, MARGIN, Cleaning
from experiments.contamination import planted


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A task, and texts of which the first three hold one, two and twelve of its questions."""
    folder = tmp_path_factory.mktemp("clean")
    rows = planted.items(30, 80)
    task = planted.write_lines(folder / "task.jsonl", rows)
    draw = random.Random(81)
    texts = [planted.text(draw, 300) for _ in range(6)]
    texts[0] += f" {rows[0]['question']} " + planted.text(draw, 200)
    texts[1] += f" {rows[1]['question']} {planted.text(draw, 300)} {rows[2]['question']}"
    texts[2] += "".join(f" {row['question']} {planted.text(draw, 200)}" for row in rows[3:15])
    return task, texts


def audit(task, source):
    looked = scan.Looked(items.tasks([task]), scan.Settings())
    return scan.scan(looked, corpus.pieces([str(source)], "text", looked.overlap))


def cleaned(task, source, out, cut="passages"):
    cleaning = Cleaning(findings.spans(audit(task, source)), "text", cut)
    clean.write([str(source)], out, cleaning)
    return cleaning


def read(path):
    return [text for _, text in readers.parts(path, "text", lambda size: None)]


@pytest.mark.parametrize("cut", ["passages", "documents"])
@pytest.mark.parametrize("kind", ["txt", "jsonl", "txt.gz", "jsonl.xz", "txt.zst", "shards"])
def test_nothing_is_found_in_a_clean_corpus_and_clean_documents_are_as_they_were(
        made, tmp_path, kind, cut):
    task, texts = made
    source = write(tmp_path / f"corpus.{kind}", texts)
    cleaning = cleaned(task, source, tmp_path / "out", cut)
    assert (cleaning.documents, cleaning.dropped) == (3, 1 if cut == "passages" else 3)
    again = audit(task, tmp_path / "out")
    (dirty,) = findings.of(again)
    assert dirty.dirty == ()
    left = texts_of(tmp_path / "out", source)
    assert left[-3:] == texts[3:]
    if cut == "documents":
        assert len(left) == 3
        return
    assert len(left) == 3 + 2 + 2 - (cleaning.written < 7)
    assert left[0] == texts[0][: len(left[0])] or kind == "shards"
    assert all(len(text) >= LEAST for text in left)
    assert again.number == len(left) == cleaning.written


def write(path, texts):
    """A corpus of a kind."""
    plain = "\f".join(texts).encode()
    lines = "".join(json.dumps({"n": i, "text": text}) + "\n" for i, text in enumerate(texts))
    if path.name.endswith("shards"):
        words = tok.train_bpe(texts, 500)
        with shards.Writer(path, words) as writer:
            for text in texts:
                writer.add(words.encode(text), len(text.encode()))
    elif path.name.endswith("gz"):
        path.write_bytes(gzip.compress(plain))
    elif path.name.endswith("xz"):
        path.write_bytes(lzma.compress(lines.encode()))
    elif path.name.endswith("zst"):
        import zstandard

        path.write_bytes(zstandard.compress(plain))
    else:
        path.write_bytes(lines.encode() if path.name.endswith("jsonl") else plain)
    return path


def texts_of(out, source):
    if not source.is_dir():
        return read(out / source.name)
    words = tok.load(out / "tokenizer.json")
    opened = shards.read(out, words)
    return [words.decode(opened.document(i).tolist()) for i in range(opened.documents)]


def test_a_hit_goes_with_the_margin_on_either_side(made, tmp_path):
    task, texts = made
    source = write(tmp_path / "corpus.jsonl", texts[:1] + texts[3:])
    spans = findings.spans(audit(task, source))
    ((start, stop),) = spans[str(source), 1]
    cleaned(task, source, tmp_path / "out")
    left = read(tmp_path / "out" / "corpus.jsonl")
    assert left[:2] == [texts[0][: start - MARGIN], texts[0][stop + MARGIN :]]
    rows = [json.loads(line) for line in (tmp_path / "out/corpus.jsonl").read_text().splitlines()]
    assert [row["n"] for row in rows] == [0, 0, 1, 2, 3], "other fields stay"


def test_stretches_that_stay_are_as_gpt_3_cut_them():
    assert clean.kept([(500, 600)]) == [(0, 300), (800, clean._NEVER)]
    assert clean.kept([(399, 600)]) == [(800, clean._NEVER)], "199 characters are too few"
    assert clean.kept([(500, 600), (900, 950)]) == [(0, 300), (1150, clean._NEVER)]
    far = [(1000 * k, 1000 * k + 10) for k in range(1, 12)]
    assert len(clean.kept(far[:10])) == 11
    assert clean.kept(far) == [], "cut more than ten times"


def test_files_and_lines_without_hits_keep_their_bytes(made, tmp_path):
    task, texts = made
    folder = tmp_path / "corpus"
    (folder / "sub").mkdir(parents=True)
    odd = b'\n{"text": "odd   spacing\\u00e9",   "x": 1e0}\r\n\n'
    (folder / "sub" / "a.jsonl").write_bytes(odd)
    (folder / "b.txt").write_bytes("\ufeffbom\r\n\f\f  \fend".encode())
    hit = json.dumps({"text": texts[0]}).encode()
    (folder / "c.jsonl").write_bytes(odd + hit)
    cleaned(task, folder, tmp_path / "out", "documents")
    for name in ("sub/a.jsonl", "b.txt"):
        assert (tmp_path / "out" / name).read_bytes() == (folder / name).read_bytes()
    assert (tmp_path / "out" / "c.jsonl").read_bytes() == odd.strip() + b"\r\n"


def test_ids_of_shards_stay_as_they_were_and_are_cut_between_tokens(made, tmp_path):
    task, texts = made
    source = write(tmp_path / "shards", texts)
    cleaned(task, source, tmp_path / "out")
    old, new = shards.read(source), shards.read(tmp_path / "out")
    np.testing.assert_array_equal(new.document(new.documents - 1), old.document(5))
    first = new.document(0)
    np.testing.assert_array_equal(first, old.document(0)[: len(first)])
    assert new.fingerprint == old.fingerprint


def test_a_corpus_of_hits_alone_is_refused_and_nothing_is_left(made, tmp_path):
    task, texts = made
    source = write(tmp_path / "corpus.jsonl", texts[:3])
    with pytest.raises(UserError, match=r"every document has hits.*--cut"):
        cleaned(task, source, tmp_path / "out", "documents")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus.jsonl"]


@pytest.mark.parametrize("stop", [KeyboardInterrupt, OSError])
def test_an_interrupted_cleaning_leaves_nothing(made, tmp_path, monkeypatch, stop):
    task, texts = made
    source = write(tmp_path / "corpus.jsonl", texts)
    lines = readers.lines

    def stopped(path):
        for number, line in lines(path):
            if number == 4:
                raise stop(28, "No space left on device")
            yield number, line

    monkeypatch.setattr(readers, "lines", stopped)
    with pytest.raises((UserError, KeyboardInterrupt)):
        cleaned(task, source, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus.jsonl"]


def test_two_files_of_one_name_are_refused(made, tmp_path):
    sources = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        sources.append(str(write(tmp_path / name / "corpus.jsonl", made[1])))
    with pytest.raises(UserError, match=r"two files.*corpus\.jsonl"):
        clean.write(sources, tmp_path / "out", Cleaning({}, "text", "passages"))


@pytest.mark.parametrize("kind", ["txt", "jsonl"])
def test_near_copies_go_and_what_is_left_after_the_last_hit_is_long_enough(made, tmp_path, kind):
    task, texts = made
    question = json.loads(task.read_text().splitlines()[20])["question"]
    words = question.split()
    words[9::10] = ["other"] * len(words[9::10])
    source = write(tmp_path / f"corpus.{kind}", [
        f"{texts[4]} {' '.join(words)} {texts[5][: MARGIN + LEAST - 20]}", texts[3]])
    found = audit(task, source)
    assert (len(found.hits), len(found.copy_rows) > 0) == (0, True)
    cleaned(task, source, tmp_path / "out")
    left = read(tmp_path / "out" / source.name)
    assert len(left) == 2
    assert texts[4].startswith(left[0][:-10])
    assert left[1] == texts[3]
