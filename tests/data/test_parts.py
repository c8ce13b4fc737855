"""Documents in parts are those that are read whole, wherever a file is cut."""

import gzip
import json
from itertools import groupby

import pytest

from dsjax.data import readers
from dsjax.errors import UserError

TEXT = "\ufeffa caf\u00e9\f\f\u4e2d\u6587 \U0001f600 end\r\nline\fa\u00df\u2028" + "x" * 40 + "\f"


def parts(path, progress=lambda size: None):
    """Documents by number, each joined of its parts."""
    found = list(readers.parts(path, "text", progress))
    return {number: "".join(text for _, text in own)
            for number, own in groupby(found, lambda part: part[0])}


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7, 1000])
@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz"])
def test_parts_of_a_text_are_its_documents_blank_ones_counted(size, name, tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "PART", size)
    path, data = tmp_path / name, TEXT.encode()
    path.write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    told = []
    wanted = TEXT.removeprefix("\ufeff").split("\f")
    assert parts(path, told.append) == dict(enumerate(wanted, 1))
    assert sum(told) == path.stat().st_size
    assert [text for text in wanted if text.strip()] == list(
        readers.read(path, "text", lambda size: None))


@pytest.mark.parametrize("size", [1, 2, 3, 1000])
@pytest.mark.parametrize("bad", [b"ab\xffcd", b"abc\xe4\xb8", b"ab\xc3", b"\xe4\xb8a"])
def test_what_is_not_utf_8_is_refused_with_its_place_as_whole_files_are(
        size, bad, tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    path.write_bytes(bad)
    with pytest.raises(UserError) as whole:
        list(readers.read(path, "text", lambda size: None))
    monkeypatch.setattr(readers, "PART", size)
    with pytest.raises(UserError, match="not UTF-8 at byte") as cut:
        parts(path)
    assert str(cut.value).split("(")[0] == str(whole.value).split("(")[0]


def test_parts_of_lines_are_whole_and_known_by_their_line(tmp_path):
    path = tmp_path / "a.jsonl"
    rows = ['{"text": "one"}', "", '{"text": "  "}', '{"text": "two\\fthree"}']
    path.write_text("\n".join(rows) + "\n")
    assert parts(path) == {1: "one", 4: "two\fthree"}
    assert [(number, line.rstrip("\n")) for number, line in readers.lines(path)] == [
        (n, row) for n, row in enumerate(rows, 1) if row]
    path.write_text('{"text": "one"}\n{"text": 3}\n')
    with pytest.raises(UserError, match="line 2"):
        parts(path)


def test_ids_of_shards_are_no_text(tmp_path):
    (tmp_path / "index.json").write_text(json.dumps({}))
    (tmp_path / "tokens-00000.bin").write_bytes(b"abc")
    with pytest.raises(UserError, match="token ids"):
        parts(tmp_path / "tokens-00000.bin")
