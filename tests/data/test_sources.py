"""Sources are read exactly as the files hold them; the unreadable is named; no held-out text is
trained on."""

import gzip
import io
import json
import lzma
import os

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from dsjax.data import readers, sources
from dsjax.data.corpus import make
from dsjax.errors import UserError

PACK = {
    "": lambda data: data,
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.ZstdCompressor().compress,
}
WORKS = ["first caf\u00e9\nline two\n", "second\n"]


def read(*paths, **options):
    return list(sources.documents(paths, **options))


@pytest.mark.parametrize("suffix", PACK)
def test_text_and_jsonl_are_read_packed_or_not(tmp_path, suffix):
    text = tmp_path / f"a.txt{suffix}"
    text.write_bytes(PACK[suffix]("\f".join(WORKS).encode()))
    assert read(text) == WORKS
    rows = tmp_path / f"b.jsonl{suffix}"
    lines = [json.dumps({"body": work, "text": "other"}) for work in WORKS]
    rows.write_bytes(PACK[suffix](("\n".join(lines) + "\n\n").encode()))
    assert read(rows, field="body") == WORKS
    assert read(tmp_path, field="body") == WORKS + WORKS
    assert read(f"{tmp_path}/*.txt*") == WORKS


def test_several_zstandard_frames_are_one_file(tmp_path):
    path = tmp_path / "a.txt.zst"
    path.write_bytes(PACK[".zst"](b"one ") + PACK[".zst"](b"two"))
    assert read(path) == ["one two"]


def test_progress_adds_up_to_the_size_on_disk(tmp_path):
    for suffix, pack in PACK.items():
        (tmp_path / f"a.txt{suffix}").write_bytes(pack(("words\n" * 9999).encode()))
    told = []
    list(sources.documents([tmp_path, "shakespeare"], progress=told.append))
    assert sum(told) == sources.size_on_disk([tmp_path, "shakespeare"])


def test_the_embedded_corpus_is_forty_two_clean_works():
    works = sources.shakespeare()
    assert read("shakespeare") == works
    assert len(works) == 42
    assert sum(map(len, works)) == 5_057_239
    assert all("by William Shakespeare" in work[:200] for work in works)
    assert not any("gutenberg" in work.lower() or "\r" in work for work in works)


def refused(path, data, pattern, **options):
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(UserError, match=pattern):
        read(path, **options)


def test_bad_input_is_refused_with_its_place(tmp_path):
    refused(tmp_path / "none.txt", None, r"none\.txt does not exist")
    refused(f"{tmp_path}/*.md", None, "holds no files")
    refused(tmp_path, None, "holds no files")
    refused(tmp_path / "e.txt", b" \n", r"e\.txt is empty")
    refused(tmp_path / "l.txt", b"abc\xe9", r"l\.txt is not UTF-8 at byte 3")
    good = b'{"text": "a"}\n'
    refused(tmp_path / "u.jsonl", good + b'"\xff"', r"u\.jsonl line 2 is not UTF-8 at byte 15")
    refused(tmp_path / "j.jsonl", good * 2 + b"{", r"j\.jsonl line 3 is not JSON")
    refused(
        tmp_path / "f.jsonl", good, r"line 1 has no text in field 'body'.*\['text'\]", field="body"
    )
    refused(tmp_path / "f.jsonl", good, r"--field of .dsjax audit., or of", field="body")
    refused(tmp_path / "m.jsonl", b'{"text": "a"}\n{"txt": "b"}\n', "line 2 .*; mend the line")
    refused(tmp_path / "v.jsonl", b'{"text": 3}', "line 1 has int in field 'text'")
    refused(tmp_path / "0.jsonl", b'{"text": null, "id": 3}', "line 1 has null in field 'text'")
    refused(tmp_path / "n.jsonl", b"[1]", "line 1 has no text in field 'text'")
    refused(tmp_path / "s.jsonl", b'{"text": "\\ud800"}', "half of a surrogate pair")
    refused(tmp_path / "a.json", b"{}", "give JSONL")


def test_empty_documents_are_passed_over(tmp_path):
    path = tmp_path / "e.jsonl"
    path.write_text('{"text": "a"}\n\n{"text": ""}\n{"text": " "}\n{"text": "b"}\n')
    assert read(path) == ["a", "b"]


@pytest.mark.parametrize("suffix", [".gz", ".xz", ".zst"])
def test_a_cut_off_or_damaged_file_is_refused(tmp_path, suffix):
    data = PACK[suffix](bytes(range(97, 123)) * 999)
    refused(tmp_path / f"cut.txt{suffix}", data[:-6], r"cut\.txt.* is damaged")
    refused(tmp_path / f"bad.jsonl{suffix}", b"junk" + data, r"bad\.jsonl.* is damaged")


@settings(deadline=None)
@given(
    st.lists(st.text("ab\n", min_size=1, max_size=60), min_size=1),
    st.sampled_from([0.1, 0.25, 0.5]),
    st.integers(1, 9),
)
def test_the_split_loses_and_repeats_nothing(texts, fraction, block):
    try:
        pieces = list(sources.split_stream(texts, fraction, block=block))
    except UserError:
        assert sum(map(len, texts)) * fraction <= block  # blocks reach 2 * block, rounding 1/2
        return
    assert "".join(piece for _, piece in pieces) == "".join(texts)
    assert all(piece for _, piece in pieces)
    train, held_out = sources.split(texts, fraction, block=block)
    assert (len(train), len(held_out)) == (
        sum(not held for held, _ in pieces),
        sum(held for held, _ in pieces),
    )


def test_held_out_blocks_are_spread_over_all_works():
    works = sources.shakespeare()
    train, held_out = sources.split(works, 0.05)
    size = sum(map(len, works))
    assert sum(map(len, train)) + sum(map(len, held_out)) == size
    assert abs(sum(map(len, held_out)) / size - 0.05) < 0.003  # half a block of 31, and uneven ends
    assert 31 <= len(held_out) <= 34  # 5.06 MB / 8 KiB * 0.05, and a short block ends each work
    homes = {i for block in held_out for i, work in enumerate(works) if block in work}
    assert len(homes) > 20
    assert all(block.endswith("\n") for block in held_out)
    assert sources.split(works, 0.05)[1] == held_out


def test_small_texts_still_give_held_out_blocks():
    text = "".join(f"{i} bottles\n" for i in range(99))
    train, held_out = sources.split([text], 0.1)
    assert 2 <= len(held_out) <= 5
    assert sources.split([text], 0)[1] == []
    assert len(sources.split(["abc"], 0.4)[1]) == 1
    with pytest.raises(UserError, match=r"too short to hold out .*0\.05 .*3 blocks") as caught:
        sources.split(["abc"], 0.05, flag="--data.heldout-fraction")
    assert "larger --data.heldout-fraction" in str(caught.value)
    with pytest.raises(UserError, match=r"1 block,.*larger --heldout-fraction"):
        sources.split(["a"], 0.05)
    with pytest.raises(UserError, match="outside"):
        sources.split([text], 1.0)
    assert sorted(io.StringIO("".join(train + held_out)).readlines()) == sorted(
        io.StringIO(text).readlines()
    )


def test_the_gutenberg_license_is_cut_away_and_never_left_in():
    text = "Title\nnotice\n*** START OF THE PROJECT GUTENBERG EBOOK X ***\nTo be.\n"
    text += "*** END OF THE PROJECT GUTENBERG EBOOK X ***\nlicense of Project Gutenberg\n"
    assert make.without_license(text) == "To be.\n"
    assert make.without_license("To be.\n") == "To be.\n"
    with pytest.raises(ValueError, match="still names Project Gutenberg"):
        make.without_license("From Project Gutenberg\nTo be.\n")


def test_lines_of_json_are_read_whatever_the_file_is_called(tmp_path):
    lines = "".join(json.dumps({"text": work}) + "\n" for work in WORKS).encode()
    for name in ("a.json", "b.json.gz", "C.JSONL", "D.JSON.ZST", "e.NDJSON.xz"):
        suffix = "." + name.lower().rpartition(".")[2]
        (tmp_path / name).write_bytes(PACK.get(suffix, PACK[""])(lines))
        assert read(tmp_path / name) == WORKS, name
    (tmp_path / "UP.TXT.GZ").write_bytes(gzip.compress(b"up\n"))
    assert read(tmp_path / "UP.TXT.GZ") == ["up\n"]


@pytest.mark.parametrize("data", [
    b'[{"text": "a"}]', b'[\n{"text": "a"},\n{"text": "b"}\n]', b'{\n "text": "a"\n}',
    b'{"text": "a"}', b'{"text": "a"}\n\n', b'"a"\n"b"\n', b"7", b"x", b"[" * 99_999,
])
def test_one_value_of_json_is_no_lines_of_json(tmp_path, data):
    refused(tmp_path / "one.json", data, "one value of JSON.*JSONL")


@pytest.mark.parametrize(("name", "data", "cause"), [
    ("a.jsonl", b'{"text": "a", "x": ' + b"[" * 99_999 + b"]" * 99_999 + b"}", "nested too deep"),
    ("a.jsonl", b'{"text": "a", "n": ' + b"9" * 5000 + b"}", "line 1 is not JSON"),
    ("a.jsonl", b'{"text": ["a"]}', "has list in field"),
    ("a.jsonl", b'{"id": 1}', r"no text in field 'text', it has \['id'\]"),
    ("a.txt", "words\n".encode("utf-16"), "UTF-16.*iconv"),
    ("a.txt", "words\n".encode("utf-16-be"), "UTF-16.*iconv"),
    ("a.txt", "\u4f60\u597d".encode("utf-16"), "is UTF-16.*iconv"),
    ("a.jsonl", '{"text": "a"}'.encode("utf-16"), "UTF-16.*iconv"),
    ("a.txt", bytes(99), "quarter of its bytes are 0"),
    ("a.tar.gz", b"", "a .tar file"),
    ("a.ZIP", b"PK", "a .zip file"),
    ("a.parquet", b"PAR1", "a .parquet file.*JSONL"),
    ("a.txt.gz", b"", "a.txt.gz is empty"),
    ("a.txt.zst", b"\x28\xb5\x2f\xfd", "damaged"),
])
def test_what_is_no_text_is_said(tmp_path, name, data, cause):
    refused(tmp_path / name, data, cause)


def test_text_may_hold_marks_and_zero_bytes(tmp_path):
    (tmp_path / "a.txt").write_bytes("\ufeffone\0two \ufeff three four five".encode())
    assert read(tmp_path / "a.txt") == ["one\0two \ufeff three four five"]
    (tmp_path / "b.jsonl").write_bytes('\ufeff{"text": "a\\u0000b"}\n'.encode())
    assert read(tmp_path / "b.jsonl") == ["a\0b"]


def test_several_members_and_wide_windows_are_one_file(tmp_path):
    parts = [b"one ", b"two ", b"three"]
    for suffix in (".gz", ".xz", ".zst"):
        (tmp_path / f"a.txt{suffix}").write_bytes(b"".join(map(PACK[suffix], parts)))
        assert read(tmp_path / f"a.txt{suffix}") == ["one two three"]
    settings = zstandard.ZstdCompressionParameters.from_level(1, window_log=28)
    packer = zstandard.ZstdCompressor(compression_params=settings).compressobj()
    (tmp_path / "long.txt.zst").write_bytes(packer.compress(b"words " * 999) + packer.flush())
    assert read(tmp_path / "long.txt.zst") == ["words " * 999]


def test_a_window_above_two_gib_and_a_bomb_are_refused_as_what_they_are(tmp_path, monkeypatch):
    settings = zstandard.ZstdCompressionParameters.from_level(1, window_log=24)
    packer = zstandard.ZstdCompressor(compression_params=settings).compressobj()
    data = packer.compress(b"words " * 999) + packer.flush()
    with monkeypatch.context() as narrow:
        narrow.setattr(readers, "WINDOW", 2**20)
        refused(tmp_path / "w.txt.zst", data, "window above 1,048,576.*--long")
    monkeypatch.setattr(readers, "FREE", 2**20)
    for suffix in (".gz", ".xz", ".zst"):
        bomb = PACK[suffix](b"a" * 2**24)
        refused(tmp_path / f"b.txt{suffix}", bomb, "unpacks to more than 200 times")
        refused(tmp_path / f"b.jsonl{suffix}", bomb, "unpacks to more than 200 times")


def test_links_are_followed_and_what_cannot_be_read_is_named(tmp_path):
    folder, other = tmp_path / "folder", tmp_path / "other"
    for place, text in ((folder, "a"), (other, "b")):
        place.mkdir()
        (place / f"{text}.txt").write_text(text)
    (folder / "linked").symlink_to(other)
    (folder / "z.txt").symlink_to(other / "b.txt")
    (folder / "round").symlink_to(folder)
    (folder / ".hidden.txt").write_text("h")
    assert read(folder) == ["a", "b", "b"]
    assert sources.size_on_disk([folder]) == 3
    (folder / "gone").symlink_to("nowhere")
    refused(folder, None, "gone is a link to nowhere, which is not there")
    (folder / "gone").unlink()
    os.mkfifo(folder / "pipe")
    refused(folder, None, "pipe is no regular file")
    refused(folder / "pipe", None, "pipe is no regular file")
    (folder / "pipe").unlink()
    (folder / "me").symlink_to("me")
    refused(folder, None, "me cannot be read")


def test_a_name_with_signs_of_globs_is_a_name_first(tmp_path):
    (tmp_path / "a[1]*.txt").write_text("mine")
    (tmp_path / "a1x.txt").write_text("other")
    assert read(tmp_path / "a[1]*.txt") == ["mine"]
    assert read(f"{tmp_path}/a[1]?.txt") == ["other"]
    (tmp_path / "in").mkdir()
    (tmp_path / "in/b.txt").write_text("inside")
    assert read(f"{tmp_path}/*") == ["other", "mine", "inside"]  # a folder too, as a shell has it


def test_empty_files_among_others_are_passed_over_and_said(tmp_path):
    for name, text in (("a", "a"), ("b", ""), ("c", " \n"), ("d", "d")):
        (tmp_path / f"{name}.txt").write_text(text)
    said = []
    assert read(tmp_path, say=said.append) == ["a", "d"]
    assert len(said) == 1
    assert "2 of 4 files" in said[0]
    assert "b.txt" in said[0]
    refused(f"{tmp_path}/[bc].txt", None, "all 2 files .* are empty")


def test_a_file_that_goes_away_while_it_is_read_is_said(tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt").write_text(name)
    texts = sources.documents([tmp_path])
    assert next(texts) == "a"
    (tmp_path / "b.txt").unlink()
    with pytest.raises(UserError, match=r"b\.txt is not there any more"):
        list(texts)


def test_what_does_not_fit_into_memory_is_said(tmp_path, monkeypatch):
    def full(*_):
        yield "a"
        raise MemoryError

    monkeypatch.setattr(readers, "_plain", full)
    refused(tmp_path / "a.txt", b"a", "more memory than there is")


def test_shards_are_no_text(tmp_path):
    (tmp_path / "index.json").write_text("{}")
    refused(tmp_path / "tokens-00000.bin", b"\1\2\3\4", "token ids.*--data.train")
