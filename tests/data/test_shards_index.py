"""Nothing in an index of shards is believed: what does not fit its files and its tokenizer is
refused, and no id outside the vocabulary is ever handed out."""

import hashlib
import json
import os

import numpy as np
import pytest

from dsjax.data import pack, shards, shards_index
from dsjax.data.tokenizers import tokenizer as tok
from dsjax.errors import UserError

BPE = tok.train_bpe(["a few words\n"], 260)
DOCUMENTS = [[5, 6, 7], [], [200] * 20, [9]]


@pytest.fixture
def folder(tmp_path):
    with shards.Writer(tmp_path, BPE, shard_tokens=7) as writer:
        for document in DOCUMENTS:
            writer.add(document, 2 * len(document))
    return tmp_path


def edited(folder, **changes):
    """Change the index, `shard_` keys in its first shard."""
    index = json.loads((folder / "index.json").read_text())
    for name, value in changes.items():
        of = index["shards"][0] if name.startswith("shard_") else index
        of[name.removeprefix("shard_")] = value
    (folder / "index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(("changes", "cause"), [
    ({"dtype": "|O"}, r"dtype '\|O'"),
    ({"dtype": "S2"}, "dtype 'S2'"),
    ({"dtype": "<u8"}, "dtype '<u8'"),
    ({"dtype": ["<u2"]}, "dtype"),
    ({"dtype": None}, "dtype"),
    ({"format": 1}, "format '1'"),
    ({"vocab": 3}, "3 ids.*260"),
    ({"vocab": 0}, "0 as vocab"),
    ({"vocab": 2**17}, "131072 as vocab"),
    ({"vocab": "260"}, "260 as vocab"),
    ({"vocab": float("nan")}, "nan as vocab"),
    ({"end_id": -5}, "-5 as end_id"),
    ({"end_id": 260}, "260 as end_id"),
    ({"end_id": True}, "True as end_id"),
    ({"end_id": 2}, r"ends its documents with <\|fim_hole\|>.*--data\.end-token"),
    ({"tokenizer": 7}, "fingerprint"),
    ({"tokenizer": "0" * 16}, "made with tokenizer 0000.*in one `dsjax data`.*--tokenizer"),
    ({"shards": {}}, "no list of shards"),
    ({"shards": []}, "no list of shards"),
    ({"shards": [None]}, "None as documents"),
    ({"shard_tokens": -1}, "-1 as tokens"),
    ({"shard_tokens": 2**70}, "as tokens"),
    ({"shard_tokens": 1e3}, "1000.0 as tokens"),
    ({"shard_tokens": 9}, "bytes where its index says 18"),
    ({"shard_documents": 0}, "0 as documents"),
    ({"shard_documents": 1}, "16 bytes where its index says 8|24 bytes where its index says 8"),
    ({"shard_text_bytes": -1}, "-1 as text_bytes"),
    ({"shard_text_bytes": None}, "None as text_bytes"),
    ({"shard_tokens_file": "../other/tokens-00000.bin"}, "in the folder itself"),
    ({"shard_tokens_file": "/etc/hostname"}, "in the folder itself"),
    ({"shard_tokens_file": ".."}, "in the folder itself"),
    ({"shard_tokens_file": "a\0b"}, "in the folder itself"),
    ({"shard_tokens_file": 7}, "in the folder itself"),
    ({"shard_tokens_file": "x" * 300}, "cannot be read|is missing"),
    ({"shard_documents_file": None}, "in the folder itself"),
])
def test_an_index_that_does_not_fit_is_refused(folder, changes, cause):
    edited(folder, **changes)
    with pytest.raises(UserError, match=cause):
        shards.read(folder, BPE)


@pytest.mark.parametrize("text", ["", "[]", "null", "7", "{", "[" * 100_000, "\xff", "{}"])
def test_an_index_that_is_none_is_refused(folder, text):
    (folder / "index.json").write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match=r"index\.json.*prepare it again"):
        shards.read(folder)


def test_files_that_are_not_files_are_refused(folder, tmp_path):
    path = folder / "tokens-00000.bin"
    data = path.read_bytes()
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(UserError, match="no regular file"):
        shards.read(folder)
    path.unlink()
    path.mkdir()
    with pytest.raises(UserError, match="no regular file"):
        shards.read(folder)
    path.rmdir()
    path.symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match="is missing"):
        shards.read(folder)
    path.unlink()
    (folder / "elsewhere").write_bytes(data)
    path.symlink_to(folder / "elsewhere")  # as caches of downloads have them
    assert shards.read(folder, BPE).documents == len(DOCUMENTS)


def overwritten(folder, name, at, value, dtype):
    file = np.memmap(folder / name, dtype, "r+")
    file[at] = value
    file.flush()


def test_ids_outside_the_vocabulary_are_never_handed_out(folder, monkeypatch):
    overwritten(folder, "tokens-00000.bin", 3, 60_000, "<u2")
    with pytest.raises(UserError, match=r"the id 60,000, outside its vocabulary of 260"):
        shards.read(folder)
    monkeypatch.setattr(shards_index, "CHECKED", 2)  # too many to look at on opening
    read = shards.read(folder, BPE)
    rows = pack.concat(read, 3, read.end_id)
    with pytest.raises(UserError, match="the id 60,000"):
        rows[0]
    with pytest.raises(UserError, match="the id 60,000"):
        read.document(0)
    assert rows[2]["tokens"].max() < 260


def test_starts_of_documents_lie_in_order_inside_their_file(folder, monkeypatch):
    overwritten(folder, "documents-00001.bin", 0, 2**63, "<u8")
    with pytest.raises(UserError, match="starts of documents"):
        shards.read(folder)
    monkeypatch.setattr(shards_index, "CHECKED", 0)
    read = shards.read(folder)
    with pytest.raises(UserError, match="a document from 9,223"):
        read.document(len(read.document_starts[0]))


def test_the_folder_above_both_parts_is_understood(tmp_path):
    for name in shards.PARTS:
        with shards.Writer(tmp_path / name, BPE) as writer:
            writer.add([1, 2], 2)
    assert shards.part(tmp_path, "train") == tmp_path / "train"
    assert shards.part(tmp_path, "heldout") == tmp_path / "heldout"
    assert shards.part(tmp_path / "train", "train") == tmp_path / "train"
    assert shards.part(tmp_path / "none", "train") == tmp_path / "none"


def test_shards_of_earlier_versions_are_read(folder):
    ids = sorted((i, name) for name, i in BPE.core.get_vocab(True).items())
    merges = [m.split(" ") if isinstance(m, str) else m
              for m in json.loads(BPE.source)["model"]["merges"]]
    old = hashlib.sha256(json.dumps([ids, merges]).encode()).hexdigest()[:16]
    assert old != BPE.fingerprint
    edited(folder, tokenizer=old)
    assert shards.read(folder, BPE).documents == len(DOCUMENTS)
