"""What is read is exactly what the files hold; what cannot be read is named; no held-out text is
trained on."""

import gzip
import io
import json
import lzma

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from dsjax.data import sources
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
    refused(tmp_path / "v.jsonl", b'{"text": 3}', "line 1 has no text in field 'text'")
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
    with pytest.raises(UserError, match="too few to hold out"):
        sources.split(["abc"], 0.05)
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
