"""A reader beside a writer that saves and removes sees a checkpoint whole or not at all."""

import fcntl
import os
import threading
import time
import types

import numpy as np
import pytest

from dsjax.checkpoint import files, multihost
from dsjax.checkpoint.arrays import Arrays
from dsjax.checkpoint.manifest import MANIFEST
from dsjax.checkpoint.store import ARRAYS, Store
from dsjax.errors import UserError


def value(manifest, where):
    """The step that an array of a checkpoint says."""
    assert manifest.extra["step"] == manifest.step
    found = Arrays(where / ARRAYS).read("w", (slice(0, 300),))
    assert (found == manifest.step).all()
    return manifest.step


def never(sentence):
    raise AssertionError(sentence)


def write(folder, *steps):
    store = Store(folder, keep=1)
    for step in steps:
        store.save(step, {"w": np.full(300, step)}, {"step": step, "saved": time.monotonic_ns()})
    store.close()


@pytest.fixture
def folder(tmp_path):
    write(tmp_path, 1)
    return tmp_path


@pytest.mark.parametrize("has_locks", [True, False])
def test_a_reader_beside_a_writer_reads_what_was_saved(folder, monkeypatch, has_locks):
    def no_lock(handle, kind):
        raise OSError("this file system has no locks")

    if not has_locks:
        monkeypatch.setattr(fcntl, "flock", no_lock)
    writer = threading.Thread(target=write, args=(folder, *range(2, 18)))
    writer.start()
    seen = []
    while writer.is_alive():
        seen.append(multihost.read(folder, never, value))
    writer.join()
    assert seen == sorted(seen)
    assert len(set(seen)) > 3
    assert files.steps(folder) == [17] or has_locks
    files.tidy(folder)
    assert not list(folder.glob(".*"))


def test_what_is_being_read_is_removed_after_it(folder):
    with multihost.newest(folder, never, is_ours=False) as found:
        assert found.step == 1
        write(folder, 2, 3)
        assert files.steps(folder) == [1, 3]
        assert value(found, folder / files.name(1)) == 1
    write(folder, 4)
    assert files.steps(folder) == [4]


def test_a_checkpoint_that_goes_while_it_is_read_is_not_called_damaged(folder, monkeypatch):
    """Where no lock tells the writer, the newest that is there then is taken."""
    calls = []

    def use(manifest, where):
        calls.append(manifest.step)
        if len(calls) == 1:
            monkeypatch.setattr(files, "fcntl", types.SimpleNamespace(
                **vars(fcntl) | {"flock": lambda *a: None}))
            write(folder, 2)
            raise OSError("it is gone")
        return value(manifest, where)

    assert multihost.read(folder, never, use) == 2
    assert calls == [1, 2]


def test_a_checkpoint_that_is_replaced_while_it_is_read_is_read_anew(folder):
    calls = []

    def use(manifest, where):
        calls.append(manifest.step)
        if len(calls) == 1:
            write(folder, 1)
            raise OSError("a file that was listed is missing")
        return value(manifest, where)

    assert multihost.read(folder, never, use) == 1
    assert calls == [1, 1]


def test_checkpoints_that_always_go_are_a_sentence(folder, monkeypatch):
    monkeypatch.setattr(multihost, "PAUSE_S", 0)

    def use(manifest, where):
        os.rename(where, folder / files.name(manifest.step + 1))
        raise OSError("it is gone")

    newest = multihost.newest  # with a manifest of whatever step
    monkeypatch.setattr(multihost, "newest", lambda folder, say, is_ours: newest(
        folder, say, is_ours=is_ours,
        check=lambda path: types.SimpleNamespace(step=int(path.name[-8:]))))
    with pytest.raises(UserError, match=r"faster than they are read.*--output.keep"):
        multihost.read(folder, never, use)


def test_a_checkpoint_that_is_being_replaced_is_waited_for(folder):
    os.rename(folder / files.name(1), folder / f"{files.REPLACED}00000001")
    with pytest.raises(UserError, match="being replaced"):
        multihost.read(folder, never, value)
    back = threading.Timer(0.2, files.tidy, [folder])
    back.start()
    assert multihost.read(folder, never, value) == 1
    back.join()


def test_removing_a_link_leaves_what_it_points_to(folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "kept"
    os.rename(folder / files.name(1), elsewhere)
    (folder / files.name(1)).symlink_to(elsewhere)
    write(folder, 3)
    assert files.steps(folder) == [3]
    assert (elsewhere / MANIFEST).is_file()
    assert not list(folder.glob(".*"))
