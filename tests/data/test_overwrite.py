"""`dsjax data` leaves what was there whole, and nothing of its own, until all is written."""

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dsjax import disk
from dsjax.cli.main import main
from dsjax.data import shards
from dsjax.data.tokenizers import tokenizer as tok

TEXT = "".join(f"{i} bottles of beer on the wall, {i * 7919 % 1009} of them green\n"
               for i in range(3000))


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("good.txt").write_text(TEXT)
    Path("late.jsonl").write_text(
        "".join(json.dumps({"text": TEXT[:999]}) + "\n" for _ in range(50)) + '{"text": 7}\n')
    return tmp_path


def files(folder):
    return {str(p): p.read_bytes() for p in Path(folder).rglob("*") if p.is_file()}


def data(*argv):
    return main(["data", *argv])


def refused(capsys, *argv):
    capsys.readouterr()
    assert data(*argv) == 2
    return capsys.readouterr().err


def test_a_bad_source_leaves_the_old_whole_and_nothing_of_the_new(here, capsys):
    assert data("good.txt", "--out", "d", "--vocab", "300") == 0
    Path("d/train/notes.txt").write_text("mine")
    before = files("d")
    words = ("--tokenizer", "d/train/tokenizer.json")
    for argv in (("good.txt", "late.jsonl", *words), ("late.jsonl",), ("late.jsonl", *words)):
        assert "line 51" in refused(capsys, *argv, "--out", "d", "--overwrite")
        assert files("d") == before
        assert "line 51" in refused(capsys, *argv, "--out", "new/inside")
        assert not Path("new").exists()


def test_what_is_overwritten_is_exchanged_and_other_files_stay(here, capsys):
    assert data("good.txt", "--out", "d", "--vocab", "300") == 0
    Path("d/train/notes.txt").write_text("mine")
    old = shards.read("d/train")
    ids = old[:]
    Path("good.txt").write_text(TEXT[: len(TEXT) // 2])
    assert data("good.txt", "--out", "d", "--vocab", "310", "--overwrite") == 0
    words = tok.load("d/train/tokenizer.json")
    assert words.vocab == 310
    assert len(shards.read("d/train", words)) < len(ids)
    assert (old[:] == ids).all()  # who reads the old ones reads on
    assert Path("d/train/notes.txt").read_text() == "mine"
    index = json.loads(Path("d/train/index.json").read_text())
    listed = {row[k] for row in index["shards"] for k in ("tokens_file", "documents_file")}
    assert {p.name for p in Path("d/train").iterdir()} == {
        *listed, "index.json", "tokenizer.json", "notes.txt"}
    assert data("good.txt", "--out", "d", "--vocab", "300", "--overwrite",
                "--heldout-fraction", "0") == 0
    assert not shards.exist("d/heldout")


def test_a_full_disk_is_a_sentence_and_leaves_the_old_whole(here, capsys, monkeypatch):
    assert data("good.txt", "--out", "d", "--vocab", "300") == 0
    before = files("d")
    sync, left = os.fsync, [0]

    def full(handle):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(handle)

    monkeypatch.setattr(os, "fsync", full)
    monkeypatch.setattr(disk, "_write_beat", lambda handle, count: None)
    for allowed in (0, 1, 3, 6, 7):  # of two files of shards, tokenizer and index, twice
        left[0] = allowed
        out = ["--tokenizer", "d/train/tokenizer.json", "--shard-tokens", "100000"]
        assert "No space left" in refused(capsys, "good.txt", *out, "--out", "d", "--overwrite")
        assert files("d") == before
        left[0] = allowed
        assert "No space left" in refused(capsys, "good.txt", *out, "--out", "e")
        assert not Path("e").exists()


def test_two_in_one_folder_are_kept_apart(here, capsys):
    Path("d").mkdir()
    holder = "import sys, time; from dsjax import disk\nwith disk.held('d', 'go'):\n" \
             " print('held', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", holder], stdout=subprocess.PIPE) as other:
        try:
            assert other.stdout.readline() == b"held\n"
            said = refused(capsys, "good.txt", "--out", "d", "--vocab", "300")
            assert f"process {other.pid}" in said
            assert "choose another --out" in said
        finally:
            other.send_signal(signal.SIGKILL)
    assert data("good.txt", "--out", "d", "--vocab", "300") == 0  # its lock ended with it


def test_what_a_killed_process_left_is_taken_away(here):
    assert data("good.txt", "--out", "d", "--vocab", "300") == 0
    before = set(os.listdir("d/train"))
    for name in ("tokens-1-00000.bin", "documents-1-00000.bin", ".tokens-1-00001.bin.77.part"):
        Path("d/train", name).write_bytes(b"half")
    Path("d/train/.new.77").mkdir()
    Path("d/train/.new.77/index.json").write_text("{}")
    assert shards.read("d/train").documents > 0
    assert data("good.txt", "--out", "d", "--vocab", "300", "--overwrite") == 0
    assert len(os.listdir("d/train")) == len(before)
    assert not any("77" in name or (name in before and name.startswith("tokens"))
                   for name in os.listdir("d/train"))


@pytest.mark.parametrize("out", ["good.txt", "good.txt/x", "broken", "/proc/x", "a" * 300])
def test_an_out_that_cannot_be_is_refused_before_any_work(here, capsys, out, monkeypatch):
    Path("broken").symlink_to("nowhere")
    monkeypatch.setattr(tok, "train_bpe", None)  # not reached
    assert "name another --out" in refused(capsys, "good.txt", "--out", out)


def test_a_link_to_a_folder_and_signs_in_its_path_are_fine(here):
    Path("else [1] %20 #?").mkdir()
    Path("link").symlink_to("else [1] %20 #?")
    assert data("good.txt", "--out", "link", "--vocab", "300") == 0
    assert data("good.txt", "--out", "link", "--vocab", "310", "--overwrite") == 0
    assert shards.read("else [1] %20 #?/train", tok.load("link/train/tokenizer.json")).vocab == 310


@pytest.mark.parametrize(("flag", "value"), [
    *((flag, value) for flag in ("--vocab", "--shard-tokens", "--tokenizer-characters")
      for value in ("0", "-5", str(2**40), str(2**70))),
    ("--heldout-fraction", "1"), ("--heldout-fraction", "nan"), ("--fim-rate", "nan"),
    ("--seed", "-1"),
])
def test_numbers_that_make_nothing_are_refused_at_once(here, capsys, flag, value):
    assert f"{flag} {value}" in refused(capsys, "good.txt", "--out", "d", flag, value)
    assert not Path("d").exists()


def test_the_next_command_is_printed_and_can_be_pasted(here, capsys):
    assert data("good.txt", "--out", "my data", "--vocab", "300") == 0
    line = capsys.readouterr().out.splitlines()[-1]
    assert line == ("train on it: dsjax train tiny --model.vocab 300 --data.train 'my data/train' "
                    "--data.heldout 'my data/heldout'")
    assert data("good.txt", "--out", "e", "--vocab", "300", "--heldout-fraction", "0") == 0
    line = capsys.readouterr().out.splitlines()[-1]
    assert "dsjax train" not in line  # which would be refused
    assert "--tokenizer e/train/tokenizer.json" in line
    assert data("good.txt", "--out", "g", "--vocab", "300", "--heldout-fraction", "0",
                "--json") == 0
    assert json.loads(capsys.readouterr().out)["next"] is None
    assert data("good.txt", "--out", "f", "--vocab", "300", "--json") == 0
    assert json.loads(capsys.readouterr().out)["next"].startswith("dsjax train tiny ")


def test_a_folder_where_the_index_should_be_is_a_sentence(here, capsys):
    Path("d/train/index.json/x").mkdir(parents=True)
    assert "cannot be exchanged" in refused(capsys, "good.txt", "--out", "d", "--vocab", "300")
    assert not [name for name in os.listdir("d/train") if name.startswith("tokens")]
