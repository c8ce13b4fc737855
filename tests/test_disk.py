"""Files are read within limits and written whole; a folder has one writer, however the last ended.

Root may read and write everything, so permissions are tried only where they bind.
"""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from dsjax import disk
from dsjax.errors import UserError, printable

HOLD = """
import sys, time
from dsjax import disk
with disk.held(sys.argv[1], "wait for it"):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """A process that holds the folder."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], stdout=subprocess.PIPE,
                               text=True, cwd=Path(__file__).parents[1])
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


@pytest.mark.parametrize(("content", "word"), [
    (b"", "empty"), (b"{", "not JSON"), (b"\xff\xfe", "not JSON"), (b"[" * 100_000, "nested"),
    (b"[]", "a list"), (b"3", "a number"), (b"null", "null"), (b"\0" * 40, "not JSON"),
    (b"9" * 5000, "not JSON"),
])
def test_json_of_another_kind_is_refused_with_its_path(tmp_path, content, word):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=word) as refusal:
        disk.read_object(path, "write it again")
    assert str(path) in str(refusal.value)
    assert str(refusal.value).endswith("; write it again")


def test_what_is_no_file_is_refused_without_being_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "broken").symlink_to("nowhere")
    (tmp_path / "large").write_bytes(b"12345")
    for name, word in {"pipe": "no regular file", ".": "a folder", "broken": "missing",
                       "none": "missing", "large": "5 bytes", "a\0b": "cannot be read",
                       "x" * 300: "cannot be read"}.items():
        with pytest.raises(UserError, match=word):
            disk.read_bytes(f"{tmp_path}/{name}", "give another", limit=4)


def test_a_file_that_cannot_be_written_stays_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    disk.write_json(path, {"a": 1})

    def full(_handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="No space left"):
        disk.write_json(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_link_is_replaced_and_what_it_points_to_stays(tmp_path):
    (tmp_path / "there").write_text("old")
    (tmp_path / "link").symlink_to("there")
    disk.write_whole(tmp_path / "link", "new")
    assert (tmp_path / "there").read_text() == "old"
    assert not (tmp_path / "link").is_symlink()
    assert (tmp_path / "link").read_text() == "new"


@pytest.mark.parametrize("kind", ["link", "hard link", "broken link", "pipe", "folder"])
def test_a_lock_that_was_planted_is_refused_and_harms_no_file(tmp_path, kind):
    mine, lock = tmp_path / "mine", tmp_path / "run" / disk.LOCK
    mine.write_text("precious")
    lock.parent.mkdir()
    {"link": lambda: lock.symlink_to(mine), "hard link": lambda: lock.hardlink_to(mine),
     "broken link": lambda: lock.symlink_to(tmp_path / "none"), "pipe": lambda: os.mkfifo(lock),
     "folder": lock.mkdir}[kind]()
    with pytest.raises(UserError, match="cannot be written to"), \
            disk.held(lock.parent, "name another --output.folder"):
        pass
    assert mine.read_text() == "precious"
    assert not (tmp_path / "none").exists()


def test_a_folder_that_cannot_be_is_refused_with_what_is_in_the_way(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "broken").symlink_to("/nonexistent/scratch")
    for name, word in {"file": "is a file", "file/x": "is a file", "broken": "is a link to",
                       "x" * 300: "too long", "a\0b": "null"}.items():
        for attempt in (disk.try_folder, disk.make_folder):
            with pytest.raises(UserError, match=word):
                attempt(f"{tmp_path}/{name}", "name another --out")
    disk.try_folder(tmp_path / "a/b/c", "name another --out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["broken", "file"]


def test_a_second_writer_is_refused_with_the_first_ones_name(tmp_path, holder):
    with pytest.raises(UserError, match=f"process {holder.pid} on"), \
            disk.held(tmp_path, "wait for it"):
        pass


def test_a_folder_is_free_when_its_holder_ended(tmp_path):
    for _ in range(2):
        with disk.held(tmp_path, "wait for it"):
            assert json.loads((tmp_path / disk.LOCK).read_text())["pid"] == os.getpid()
    assert (tmp_path / disk.LOCK).read_bytes() == b""


def test_a_folder_is_free_at_once_when_its_holder_was_killed(tmp_path, holder, monkeypatch):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    monkeypatch.setattr(disk, "PATIENCE_S", 1e6)
    with disk.held(tmp_path, "wait for it"):
        pass


@pytest.mark.parametrize("is_alive", [True, False])
def test_the_beat_tells_of_a_holder_whose_lock_is_not_seen(tmp_path, monkeypatch, is_alive):
    monkeypatch.setattr(disk, "PATIENCE_S", 0.5)
    file, over = tmp_path / disk.LOCK, threading.Event()
    beat = {"host": "far", "boot": "another", "pid": 7}
    file.write_text(json.dumps(beat | {"beat": 0}))

    def live():
        count = 0
        while not over.wait(0.02):
            count += 1
            file.write_text(json.dumps(beat | {"beat": count}))

    thread = threading.Thread(target=live)
    if is_alive:
        thread.start()
    try:
        if is_alive:
            with pytest.raises(UserError, match="process 7 on far"), \
                    disk.held(tmp_path, "wait for it"):
                pass
        else:
            with disk.held(tmp_path, "wait for it"):
                pass
    finally:
        over.set()
        if is_alive:
            thread.join()


def test_printable_shows_what_a_terminal_would_obey():
    assert printable("a\x1b[2J\x07\r\x9b\u202e\udc80b\n\tc") == \
        r"a\x1b[2J\x07\r\x9b\u202e\udc80b" + "\n\tc"
    assert printable("caf\u00e9 \u65e5\u672c [red]") == "caf\u00e9 \u65e5\u672c [red]"


@pytest.mark.parametrize("number", [float("inf"), float("-inf"), float("nan")])
def test_a_result_is_json_that_every_reader_takes(number):
    assert disk.to_json({"a": [1.5, None]}) == '{"a": [1.5, null]}'
    with pytest.raises(UserError, match="infinite or none at all"):
        disk.to_json({"a": [number]})
