"""Shards are read as they were written, and a folder that is not whole is refused."""

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsjax.data import pack, shards
from dsjax.data.tokenizers import tokenizer as tok
from dsjax.errors import UserError

BPE = tok.train_bpe(["a few words\n"], 260)
DOCUMENTS = [[5, 6, 7], [], [200] * 20, [9]]


def files(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def write(folder, documents=DOCUMENTS, tokenizer=BPE, **options):
    with shards.Writer(folder, tokenizer, **options) as writer:
        for document in documents:
            writer.add(document, 2 * len(document))
    return shards.read(folder, tokenizer)


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.lists(st.integers(0, 259), max_size=9), min_size=1, max_size=9),
    st.integers(1, 40),
    st.data(),
)
def test_shards_are_the_joined_documents_in_order(tmp_path_factory, documents, limit, data):
    stream = pack.joined(documents, BPE.end_id)
    read = write(tmp_path_factory.mktemp("shards"), documents, shard_tokens=limit)
    assert len(read) == len(stream)
    start, stop = (data.draw(st.integers(0, len(stream) + 2)) for _ in range(2))
    assert read[start:stop].tolist() == stream[start:stop].tolist()
    assert read.documents == len(documents)
    assert [read.document(i).tolist() for i in range(len(documents))] == documents
    assert read.text_bytes == 2 * sum(map(len, documents))


def test_rows_of_shards_are_rows_of_the_array(tmp_path):
    read = write(tmp_path, shard_tokens=7)
    assert len(read.files) > 1
    assert tok.load(tmp_path / "tokenizer.json").fingerprint == read.fingerprint
    on_disk = pack.segments(read, 5, read.end_id)
    in_memory = pack.segments(pack.joined(DOCUMENTS, 0), 5, 0)
    assert len(on_disk) == len(in_memory)
    for i in range(len(on_disk)):
        for name, a in in_memory[i].items():
            assert np.array_equal(on_disk[i][name], a)


def test_ids_take_two_bytes_up_to_65536_of_them_and_four_above(tmp_path):
    assert write(tmp_path / "small").files[0].dtype == np.uint16
    big = dataclasses.replace(BPE, vocab=65_537)
    read = write(tmp_path / "big", [[65_536]], big)
    assert read.files[0].dtype == np.uint32
    assert read[1:2].tolist() == [65_536]
    with pytest.raises(ValueError, match=r"outside \[0, 260\)"):
        write(tmp_path / "wrong", [[260]])


def test_a_folder_that_is_not_whole_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"index\.json is missing"):
        shards.read(tmp_path)
    write(tmp_path)
    file = tmp_path / "tokens-00000.bin"
    data = file.read_bytes()
    file.write_bytes(data[:-1])
    with pytest.raises(UserError, match=rf"tokens-00000\.bin has {len(data) - 1} bytes"):
        shards.read(tmp_path)
    file.unlink()
    with pytest.raises(UserError, match=r"tokens-00000\.bin is missing"):
        shards.read(tmp_path)
    file.write_bytes(data)
    index = json.loads((tmp_path / "index.json").read_text())
    for bad in ("", "[]", json.dumps({**index, "format": "other"})):
        (tmp_path / "index.json").write_text(bad)
        with pytest.raises(UserError, match=r"index\.json.*prepare it again"):
            shards.read(tmp_path)


def test_another_tokenizer_is_refused(tmp_path):
    write(tmp_path)
    other = tok.train_bpe(["quite other words, quite other words\n"], 270)
    with pytest.raises(UserError, match=f"{BPE.fingerprint}, not {other.fingerprint}"):
        shards.read(tmp_path, other)


def test_an_interrupted_writing_leaves_the_old_whole_and_nothing_stale(tmp_path):
    write(tmp_path, shard_tokens=7)
    before = files(tmp_path)
    with pytest.raises(UserError, match="holds shards"):
        write(tmp_path)

    def break_off():
        with shards.Writer(tmp_path, BPE, shard_tokens=3, is_overwriting=True) as writer:
            writer.add([1, 2, 3, 4], 4)
            writer.add([5], 1)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        break_off()
    assert files(tmp_path) == before
    shards.remove(tmp_path)
    assert not shards.exist(tmp_path)
    assert write(tmp_path).documents == len(DOCUMENTS)
    names = ["documents-00000.bin", "index.json", "tokenizer.json", "tokens-00000.bin"]
    assert sorted(p.name for p in tmp_path.iterdir()) == names
    with pytest.raises(UserError, match="no documents"):
        write(tmp_path / "none", [])
