"""Planted copies are found at the promised rates, in every format, and disjoint text is clean."""

import json
import random

import pytest

from dsjax.data import shards, sources
from dsjax.data.tokenizers import tokenizer as tok
from dsjax.evaluate.audit import corpus, findings, items, scan
from dsjax.evaluate.audit.scan import Settings
from experiments.contamination import planted


def audit(task, names, settings=Settings()):  # noqa: B008 (it is frozen)
    looked = scan.Looked(items.tasks([task]), settings)
    found = scan.scan(looked, corpus.pieces([str(n) for n in names], "text", looked.overlap))
    (dirty,) = findings.of(found)
    return found, dirty


def by_kind(dirty):
    """Names of items with exact stretches, and with near copies."""
    return ({one.item.id for one in dirty.dirty if one.documents},
            {one.item.id for one in dirty.dirty if one.similarity})


def recall(tmp_path, change, number, seed):
    """Items planted with a change in half of the documents -> shares found, and false ones."""
    rows = planted.items(2 * number, seed)
    task = planted.write_lines(tmp_path / "task.jsonl", rows)
    draw = random.Random(seed + 1)
    texts = planted.corpus([change(row["question"], draw) for row in rows[:number]], seed + 2,
                           2 * number)
    path = planted.write_lines(tmp_path / "corpus.jsonl", [{"text": text} for text in texts])
    _, dirty = audit(task, [path])
    exact, near = by_kind(dirty)
    there = {row["id"] for row in rows[:number]}
    wrong = len((exact | near) - there) / number
    return len(exact & there) / number, len(near & there) / number, wrong


SIZES = [150, pytest.param(2000, marks=pytest.mark.exhaustive)]


@pytest.mark.parametrize("number", SIZES)
def test_verbatim_copies_are_found_by_both(tmp_path, number):
    exact, near, wrong = recall(tmp_path, lambda text, draw: text, number, 10)
    assert exact >= 0.99
    assert near >= 0.99
    assert wrong < 0.001


@pytest.mark.parametrize("number", SIZES)
def test_lightly_edited_copies_are_found_nearly(tmp_path, number):
    _, near, wrong = recall(tmp_path, planted.edited, number, 20)
    assert near >= 0.95
    assert wrong < 0.001


def test_letters_and_marks_alone_leave_a_copy_exact(tmp_path):
    def change(text, draw):
        return planted.edited(text, draw, rate=0)

    exact, _, _ = recall(tmp_path, change, 100, 30)
    assert exact >= 0.99


@pytest.mark.parametrize("number", [400, pytest.param(5000, marks=pytest.mark.exhaustive)])
def test_disjoint_text_of_the_same_chain_is_clean(tmp_path, number):
    task = planted.write_lines(tmp_path / "task.jsonl", planted.items(number, 40))
    texts = planted.corpus([None] * number, 41)
    path = planted.write_lines(tmp_path / "corpus.jsonl", [{"text": text} for text in texts])
    found, dirty = audit(task, [path])
    assert len(dirty.dirty) / number < 0.001
    assert found.number == number


def naive(rows, texts, n, common):
    """Items with a stretch that at most `common` documents have, by sets of tuples."""
    def stretches(text):
        words = text.split()
        return {tuple(words[i : i + n]) for i in range(len(words) - n + 1)}

    own = [stretches(text) for text in texts]
    counted = {s for one in own for s in one if sum(s in other for other in own) <= common}
    return {row["id"] for row in rows
            if stretches(f"{row['question']} {row['answer']}") & counted}


@pytest.mark.parametrize(("n", "common"), [(13, 10), (4, 3), (4, 1), (2, 1)])
def test_exact_hits_and_common_phrases_are_those_of_sets(tmp_path, n, common):
    draw = random.Random(n)
    letters = "abcdefghijklmnopqrst"
    rows = [{"id": f"q{i}", "question": " ".join(draw.choices(letters, k=15)),
             "answer": " ".join(draw.choices(letters, k=9))} for i in range(30)]
    texts = [" ".join(draw.choices(letters, k=300)) for _ in range(12)]
    texts[3] += " " + rows[4]["question"]
    task = planted.write_lines(tmp_path / "task.jsonl", rows)
    path = planted.write_lines(tmp_path / "corpus.jsonl", [{"text": text} for text in texts])
    for bits in (64, 5):
        _, dirty = audit(task, [path], Settings(n, common, None, bits))
        assert by_kind(dirty)[0] == naive(rows, texts, n, common)


def test_a_common_phrase_does_not_count_and_its_items_are_told(tmp_path):
    rows = planted.items(3, 50)
    task = planted.write_lines(tmp_path / "task.jsonl", rows)
    texts = [planted.text(random.Random(i), 50) + " " + rows[1]["question"] for i in range(4)]
    path = planted.write_lines(tmp_path / "corpus.jsonl", [{"text": text} for text in texts])
    found, dirty = audit(task, [path], Settings(common=3, similarity=None))
    assert (len(dirty.dirty), dirty.common) == (0, 1)
    assert findings.spans(found) == {}, "and nothing would be cut out"
    _, dirty = audit(task, [path], Settings(common=4, similarity=None))
    assert [(one.item.id, one.documents) for one in dirty.dirty] == [("q1", 4)]


def test_a_document_that_repeats_a_phrase_counts_once(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "PIECE", 2000)
    rows = planted.items(1, 55)
    task = planted.write_lines(tmp_path / "task.jsonl", rows)
    draw = random.Random(56)
    path = tmp_path / "corpus.txt"
    path.write_text(" ".join(f"{rows[0]['question']} {planted.text(draw, 300)}" for _ in range(9)))
    _, dirty = audit(task, [path], Settings(common=1, similarity=None))
    assert [one.documents for one in dirty.dirty] == [1]


@pytest.fixture(scope="module")
def plants():
    """Items, and three documents with some of them."""
    rows = planted.items(40, 60)
    draw = random.Random(61)
    texts = ["", "", ""]
    for k, row in enumerate(rows[:24]):
        copy = row["question"] if k % 2 else planted.edited(row["question"], draw)
        texts[k % 3] += f"{planted.text(draw, 90)} {copy} "
    return rows, texts


def places(found):
    """Every hit and copy as (place, start, stop)."""
    return {(place, span) for (_, place), own in findings.spans(found).items() for span in own}


def test_text_lines_packed_files_and_shards_give_the_same_hits(tmp_path, plants):
    rows, texts = plants
    task = planted.write_lines(tmp_path / "task.jsonl", rows)
    lines = planted.write_lines(tmp_path / "corpus.jsonl", [{"text": text} for text in texts])
    plain = tmp_path / "corpus.txt"
    plain.write_text("\f".join(texts))
    import gzip
    import lzma

    import zstandard
    packed = [tmp_path / "corpus.txt.gz", tmp_path / "corpus.jsonl.xz", tmp_path / "c.txt.zst"]
    packed[0].write_bytes(gzip.compress(plain.read_bytes()))
    packed[1].write_bytes(lzma.compress(lines.read_bytes()))
    packed[2].write_bytes(zstandard.compress(plain.read_bytes()))
    words = tok.train_bpe(texts, 400)
    with shards.Writer(tmp_path / "shards" / "train", words, shard_tokens=3000) as writer:
        for text in texts:
            writer.add(words.encode(text), len(text.encode()))
    found, dirty = audit(task, [lines])
    assert len(dirty.dirty) >= 22
    wanted = places(found)
    for source in (plain, *packed, tmp_path / "shards", tmp_path / "shards" / "train"):
        again, same = audit(task, [source])
        assert places(again) == wanted, source
        assert by_kind(same) == by_kind(dirty)


def test_hits_do_not_depend_on_how_a_document_is_cut(tmp_path, plants, monkeypatch):
    rows, texts = plants
    task = planted.write_lines(tmp_path / "task.jsonl", rows)
    path = tmp_path / "corpus.txt"
    path.write_text(" ".join(texts) + " caf\u00e9")
    settings = Settings(similarity=None)
    found, dirty = audit(task, [path], settings)
    assert dirty.dirty
    for size in (300, 1009):
        monkeypatch.setattr(corpus, "PIECE", size)
        again, same = audit(task, [path], settings)
        assert places(again) == places(found)
        assert (again.hits == found.hits).all()
        assert by_kind(same) == by_kind(dirty)
        assert again.words == found.words


def test_near_copies_do_not_depend_on_how_a_document_is_cut(tmp_path, plants, monkeypatch):
    rows, texts = plants
    task = planted.write_lines(tmp_path / "task.jsonl", rows)
    path = tmp_path / "corpus.txt"
    path.write_text(" ".join(texts))
    found, dirty = audit(task, [path])
    monkeypatch.setattr(corpus, "PIECE", 6000)
    again, same = audit(task, [path])
    assert by_kind(same) == by_kind(dirty)
    assert {i: copy[0] for i, copy in again.copies.items()} == {
        i: copy[0] for i, copy in found.copies.items()}


def test_the_embedded_corpus_knows_its_own_lines_and_no_others(tmp_path):
    work = sources.shakespeare()[5]
    line = " ".join(work[20_000:21_000].split()[3:60])
    rows = [{"id": "own", "question": line}, *planted.items(300, 70)]
    task = planted.write_lines(tmp_path / "task.jsonl", rows)
    found, dirty = audit(task, ["shakespeare"])
    assert [one.item.id for one in dirty.dirty][:1] == ["own"]
    assert dirty.dirty[0].share == dirty.dirty[0].similarity == 1
    match = dirty.dirty[0].exact
    assert match is not None
    assert work[match.passage.start : match.passage.stop] == match.passage.text
    assert " ".join(match.passage.text.split()) == line
    assert len(dirty.dirty) <= 1 + 300 * 0.001
    assert found.characters == sum(map(len, sources.shakespeare()))


def test_public_forms_of_tasks_are_read(tmp_path):
    forms = [
        {"question": "Q one", "answer": "A one"}, {"problem": "P", "solution": "S", "answer": "1"},
        {"task_id": "HumanEval/0", "prompt": "def f():", "canonical_solution": " return 1"},
        {"task_id": 11, "text": "Write", "code": "x = 1"},
        {"subject": "law", "question": "Which?", "choices": ["a", "b"], "answer": 1},
        {"ind": 24, "ctx": "He", "endings": ["runs", "sits"], "label": "1"},
        {"id": 0, "query": "I care about", "choices": ["signs"]},
        {"id": "M", "question": "Which?", "choices": {"text": ["a", "b"], "label": ["A", "B"]}},
    ]
    path = tmp_path / "all.jsonl"
    path.write_text("\n".join(map(json.dumps, forms)))
    (task,) = items.tasks([path])
    assert [item.id for item in task.items] == ["line 1", "line 2", "HumanEval/0", "11", "line 5",
                                                "24", "0", "M"]
    assert [item.text.split("\n") for item in task.items] == [
        ["Q one", "A one"], ["P", "1", "S"], ["def f():", " return 1"], ["Write", "x = 1"],
        ["Which?", "a", "b"], ["He", "runs", "sits"], ["I care about", "signs"],
        ["Which?", "a", "b"]]
