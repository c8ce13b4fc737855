"""Whatever stands where a manifest should be is damage: the checkpoint before it is read."""

import errno
import hashlib
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from dsjax.checkpoint import files, multihost
from dsjax.checkpoint.manifest import MANIFEST, Damaged, check, read
from dsjax.checkpoint.store import Store
from dsjax.errors import UserError


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder with checkpoints 1 and 2."""
    folder = tmp_path_factory.mktemp("whole")
    store = Store(folder, keep=2)
    for step in (1, 2):
        store.save(step, {"w": np.full(3, step)}, {"at": step})
    store.close()
    return folder


@pytest.fixture
def folder(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "checkpoints")


TEXTS = {
    "empty": "", "blank": " \n", "list": "[]", "text": '"a"', "number": "6", "null": "null",
    "nan": "NaN", "deep": "[" * 100_000, "deep objects": '{"a":' * 100_000, "cut": '{"step": 2',
    "no utf-8": b"\xff\xfe{}", "zeros": b"\0" * 500, "object": "{}", "digits": "9" * 5000,
}


@pytest.mark.parametrize("name", TEXTS)
def test_a_manifest_of_another_kind_is_damage(folder, name):
    text = TEXTS[name]
    path = folder / files.name(2) / MANIFEST
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    goes_back(folder)


def goes_back(folder, word=MANIFEST):
    """The newest is passed over in a sentence that has the word, and the one before is read."""
    said = []
    with multihost.newest(folder, said.append, is_ours=False) as found:
        assert found.step == 1
    assert len(said) == 1
    assert "checkpoint 2 is damaged (" in said[0]
    assert word in said[0]
    assert said[0].endswith("going back to checkpoint 1")
    assert len(said[0]) < 300


def all_files(body, entry):
    """The body with this size and hash for every file."""
    return body | {"files": dict.fromkeys(body["files"], entry)}


SIZE = ["a", [1, "0" * 64]]
KINDS = {
    "other keys": lambda b: {"a": 1},
    "format 2": lambda b: b | {"format": 2},
    "format of 5,000 digits": lambda b: b | {"format": 10**4000},
    "no leaves": lambda b: {k: v for k, v in b.items() if k != "leaves"},
    "one key more": lambda b: b | {"new": 1},
    "step as text": lambda b: b | {"step": "2"},
    "step of a number": lambda b: b | {"step": 2.0},
    "step true": lambda b: b | {"step": True},
    "step below 0": lambda b: b | {"step": -2},
    "huge step": lambda b: b | {"step": 2**40},
    "another step": lambda b: b | {"step": 1},
    "extra as list": lambda b: b | {"extra": []},
    "leaves as list": lambda b: b | {"leaves": [["w", [[3], "int64"]]]},
    "leaf as text": lambda b: b | {"leaves": {"w": "int64[3]"}},
    "leaf of three": lambda b: b | {"leaves": {"w": [[3], "int64", 1]}},
    "shape as number": lambda b: b | {"leaves": {"w": [3, "int64"]}},
    "shape below 0": lambda b: b | {"leaves": {"w": [[-3], "int64"]}},
    "shape of texts": lambda b: b | {"leaves": {"w": [["3"], "int64"]}},
    "absurd shape": lambda b: b | {"leaves": {"w": [[2**40, 2**40], "int64"]}},
    "no dtype": lambda b: b | {"leaves": {"w": [[3], "finfo"]}},
    "objects": lambda b: b | {"leaves": {"w": [[3], "object"]}},
    "dtype as null": lambda b: b | {"leaves": {"w": [[3], None]}},
    "files as list": lambda b: b | {"files": [SIZE]},
    "no files": lambda b: b | {"files": {}},
    "file with NUL": lambda b: b | {"files": b["files"] | {"a\0b": SIZE[1]}},
    "file outside": lambda b: b | {"files": b["files"] | {"../x": SIZE[1]}},
    "file at the root": lambda b: b | {"files": b["files"] | {"/etc/passwd": SIZE[1]}},
    "file half a pair": lambda b: b | {"files": b["files"] | {"\ud800": SIZE[1]}},
    "long name": lambda b: b | {"files": b["files"] | {"x" * 5000: SIZE[1]}},
    "absurd size": lambda b: all_files(b, [10**30, "0" * 64]),
    "size as text": lambda b: all_files(b, ["1", "0" * 64]),
    "size below 0": lambda b: all_files(b, [-1, "0" * 64]),
    "size nan": lambda b: all_files(b, [float("nan"), "0" * 64]),
    "hash of null": lambda b: all_files(b, [1, None]),
    "hash cut": lambda b: all_files(b, [1, "0"]),
}


@pytest.mark.parametrize("name", KINDS)
def test_a_signed_manifest_that_no_checkpoint_has_is_damage(folder, name):
    path = folder / files.name(2) / MANIFEST
    body = json.loads(path.read_text())
    del body["sha256"]
    body = KINDS[name](body)
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps(body | {"sha256": digest}))
    goes_back(folder, "damaged (")


def test_what_is_no_regular_file_is_damage(folder):
    path = folder / files.name(2)
    name = next(iter(read(path).files))
    (path / name).unlink()
    os.mkfifo(path / name)  # which nobody writes: reading it would wait for ever
    with pytest.raises(Damaged, match="no file"):
        check(path, read(path))
    (path / MANIFEST).unlink()
    os.mkfifo(path / MANIFEST)
    goes_back(folder, "no regular file")
    shutil.rmtree(path)
    path.write_text("a file of that name")
    goes_back(folder)


def refuse_to_open(monkeypatch, refused, number):
    """Have the machine refuse one file, as its rights or a failing disk would; root may all."""
    for name in ("open", "read_bytes"):
        monkeypatch.setattr(Path, name, _refusing(getattr(Path, name), refused, number))


def _refusing(method, refused, number):
    def call(self, *args, **options):
        if self == refused:
            raise OSError(number, os.strerror(number), str(self))
        return method(self, *args, **options)

    return call


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO])
@pytest.mark.parametrize("is_manifest", [True, False])
def test_what_may_not_be_read_is_refused_and_stays_where_it_is(folder, monkeypatch, number,
                                                               is_manifest):
    path = folder / files.name(2)
    name = MANIFEST if is_manifest else next(iter(read(path).files))
    store = Store(folder, keep=2)
    with monkeypatch.context() as patch:
        refuse_to_open(patch, path / name, number)
        with pytest.raises(UserError, match="cannot be read") as caught:
            store.restore({"w": np.zeros(3, int)}, say=pytest.fail)
    assert str(path / name) in str(caught.value)
    assert "let it be read" in str(caught.value)
    assert files.steps(folder) == [1, 2]
    assert not list(folder.glob("damaged-*"))
    assert store.restore({"w": np.zeros(3, int)}, say=pytest.fail)[0] == 2
    store.close()


def test_where_all_are_damaged_only_training_is_told_to_start_again(folder):
    for step in (1, 2):
        (folder / files.name(step) / MANIFEST).write_text("{")
    for is_ours, word in ((True, "start again"), (False, "give another run")):
        with (pytest.raises(UserError, match=word) as caught,
              multihost.newest(folder, pytest.fail, is_ours=is_ours)):
            pass
        assert ("start again" in str(caught.value)) is is_ours


def test_names_that_are_no_step_are_no_checkpoint(folder):
    for name in ("step-000000002", "step-99999999999", "step-4000000000", "step-0000000x",
                 "step-\u0663" * 2, ".replaced-x", ".saving-", ".replaced-\u0663", "damaged-1"):
        (folder / name).mkdir()
    assert files.steps(folder) == [1, 2]
    files.tidy(folder)
    assert files.steps(folder) == [1, 2]
    assert (folder / "damaged-1").is_dir()


def test_nothing_that_was_set_aside_is_deleted(folder):
    store = Store(folder, keep=2)
    for text in ("first", "second", "third"):
        (folder / files.name(2) / MANIFEST).write_text(text)
        assert store.restore({"w": np.zeros(3, int)}, say=lambda s: None)[0] == 1
        store.save(2, {"w": np.zeros(3, int)}, {})
        store.wait()
    store.close()
    aside = sorted(p / MANIFEST for p in folder.glob("damaged-*"))
    assert [p.read_text() for p in aside] == ["first", "second", "third"]
    assert files.steps(folder) == [1, 2]
