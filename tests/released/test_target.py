"""A conversion's folder is whole or not there, wherever it is to be and whoever else writes it."""

import contextlib
import json
import os
import resource
import subprocess

import pytest

from dsjax import disk, weights
from dsjax.config.model import MLAConfig, ModelConfig
from dsjax.errors import UserError
from dsjax.released import convert as conversion
from dsjax.released import hf
from dsjax.released.target import INSIDE, STATE, Target
from tests.released.test_hf import draw, same, same_files

QUIET = {"say": lambda sentence: None}


class Stop(Exception):  # noqa: N818
    pass


def make(final, key="a key", names=("config.json", "b"), stop=False):
    """Write a folder of these files; with `stop`, only the first of them."""
    target = Target(final, key)
    with target.written(lambda: 100) as partial:
        for name in names:
            if not (partial / name).exists():
                (partial / name).write_text(f"{name} {key}")
            if stop:
                raise Stop
    return target


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def test_a_new_folder_appears_at_once_with_those_above_it(tmp_path):
    make(tmp_path / "x" / "y" / "z")
    assert names(tmp_path / "x" / "y") == ["z"]
    assert names(tmp_path / "x" / "y" / "z") == ["b", "config.json"]


@pytest.mark.parametrize("way", ["folder", "link", "here", "link_to_link"])
def test_an_empty_folder_that_is_there_stays_in_its_place(tmp_path, monkeypatch, way):
    place = tmp_path / "disk" / "place"
    place.mkdir(parents=True)
    given = {"folder": place, "here": tmp_path.__class__(".")}.get(way, tmp_path / "link")
    if given.name == "link":
        (tmp_path / "inner").symlink_to("disk/place")
        given.symlink_to("inner" if way == "link_to_link" else "disk/place")
    monkeypatch.chdir(place)
    before = os.stat(place).st_ino
    assert make(given).name == "place"
    assert os.stat(".").st_ino == before
    assert names(place) == ["b", "config.json"]
    assert names(tmp_path / "disk") == ["place"]
    with pytest.raises(UserError, match="already there"):
        make(given)


def test_a_mount_point_is_filled(tmp_path):
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small disk is not permitted here")
    try:
        make(tmp_path)
        assert names(tmp_path) == ["b", "config.json"]
    finally:
        subprocess.run(["umount", "-l", str(tmp_path)], check=True)


def test_what_cannot_become_a_folder_is_refused_before_any_work(tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    (tmp_path / "nowhere").symlink_to("gone")
    (tmp_path / "hidden").mkdir()
    (tmp_path / "hidden" / ".mine").touch()
    before = sorted(map(str, tmp_path.rglob("*")))
    for name, words in {"file": "is a file", "file/below": "is a file", "full": "already there",
                        "nowhere": "link to gone", "nowhere/below": "link to gone",
                        "hidden": "already there", "n" * 256: "too long", "nul\0": "null"}.items():
        with pytest.raises(UserError, match=words):
            Target(tmp_path / name, "a key")
    assert sorted(map(str, tmp_path.rglob("*"))) == before


@pytest.mark.parametrize("is_there", [True, False])
def test_what_was_begun_is_gone_on_from_by_the_same_source_only(tmp_path, is_there):
    final = tmp_path / "x"
    if is_there:
        final.mkdir()
    with pytest.raises(Stop):
        make(final, "one", ("b",), stop=True)
    assert make(final, "one").partial.exists() is False
    assert (final / "b").read_text() == "b one"
    with pytest.raises(Stop):
        make(tmp_path / "y", "one", ("b",), stop=True)
    make(tmp_path / "y", "two")
    assert (tmp_path / "y" / "b").read_text() == "b two"
    assert names(tmp_path) == ["x", "y"]


@pytest.mark.parametrize("state", ["", "{", "[]", "null", '"one"', '{"key": 3}', "[" * 99_999,
                                   '{"key": "one", "moved": 7}',
                                   '{"moved": ["../y", 3, ""]}', None])
def test_a_damaged_state_is_of_another_source(tmp_path, state):
    hidden = tmp_path / ".x.partial"
    hidden.mkdir()
    (hidden / "b").write_text("left over")
    (tmp_path / "y").touch()
    if state is None:
        (hidden / STATE).mkdir()
    else:
        (hidden / STATE).write_text(state)
    make(tmp_path / "x", "two")
    assert (tmp_path / "x" / "b").read_text() == "b two"
    assert names(tmp_path) == ["x", "y"]


@pytest.mark.parametrize("key", ["one", "two"])
def test_a_move_into_a_folder_that_was_stopped_is_gone_on_from(tmp_path, monkeypatch, key):
    rename, calls = os.rename, []

    def stopped(a, b):
        calls.append(b)
        if len(calls) == 2:
            raise KeyboardInterrupt
        rename(a, b)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", stopped)
        with pytest.raises(KeyboardInterrupt):
            make(tmp_path, "one")
    assert names(tmp_path) == [INSIDE, "b"]  # by which nobody takes it for whole
    if key == "two":  # what another state lists may be anyone's
        with pytest.raises(UserError, match="already there"):
            make(tmp_path, key)
        assert (tmp_path / "b").read_text() == "b one"
        return
    make(tmp_path, key)
    assert (tmp_path / "b").read_text() == f"b {key}"
    assert names(tmp_path) == ["b", "config.json"]


def test_a_conversion_that_only_left_its_hidden_folder_is_whole_and_kept(tmp_path):
    make(tmp_path, "one")
    (tmp_path / INSIDE).mkdir()
    state = {"key": "one", "moved": ["b", "config.json"]}
    (tmp_path / INSIDE / STATE).write_text(json.dumps(state))
    for key in ("one", "two", None):
        with pytest.raises(UserError, match="already there"):
            make(tmp_path, key)
    assert (tmp_path / "b").read_text() == "b one"


def test_a_second_writer_gets_a_sentence_and_the_first_its_folder(tmp_path):
    first = Target(tmp_path / "x", "one")
    with first.written(lambda: 0) as partial:
        (partial / "config.json").touch()
        for key in ("one", "two", None):
            with pytest.raises(UserError, match=rf"x is being written by process {os.getpid()}"):
                make(tmp_path / "x", key)
        late = Target(tmp_path / "x", "one")
        assert names(partial) == [disk.LOCK, STATE, "config.json"]
    with pytest.raises(UserError, match="already there"), late.written(lambda: 0):
        pass
    assert names(tmp_path) == ["x"]
    assert names(tmp_path / "x") == ["config.json"]


def test_no_room_is_said_before_the_work_and_keeps_what_is_done(tmp_path):
    with pytest.raises(UserError, match=r"needs .* TB and the disk has"), \
            Target(tmp_path / "x", "one").written(lambda: 10**18):
        pass
    assert not names(tmp_path)
    with pytest.raises(Stop):
        make(tmp_path / "x", "one", ("b",), stop=True)
    with pytest.raises(UserError, match="needs"), \
            Target(tmp_path / "x", "one").written(lambda: 10**18):
        pass
    assert "b" in names(tmp_path / ".x.partial")


CFG = ModelConfig(320, 16, 1, 1, 24, MLAConfig(1, 8, 8, 4, 8))


@contextlib.contextmanager
def files_of_at_most(size):
    """A disk on which no file grows above a size."""
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, limit[1]))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)


@pytest.mark.parametrize("count", [25, 80, 160, 215])
def test_a_conversion_that_was_stopped_anywhere_goes_on(tmp_path, monkeypatch, count):
    """Stopped at any call of the system: in the frame, the tensors, the listing or the move."""
    hf.save(tmp_path / "a", CFG, draw(CFG))
    for name in ("run", "b"):
        (tmp_path / name).mkdir()
    steps = [lambda: conversion.to_run(tmp_path / "a", tmp_path / "run", **QUIET),
             lambda: conversion.to_released(tmp_path / "run", tmp_path / "b", **QUIET)]
    for step in steps:
        left = iter(range(count))

        def mortal(call, left=left):
            def calls(*args, **more):
                if next(left, None) is None:
                    raise KeyboardInterrupt
                return call(*args, **more)
            return calls

        with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
            for name in ("rename", "replace", "open", "fsync", "unlink", "mkdir"):
                patch.setattr(os, name, mortal(getattr(os, name)))
            step()
        with contextlib.suppress(UserError):  # it was whole before it was stopped
            step()
    same_files(tmp_path / "a", tmp_path / "b")
    assert names(tmp_path) == ["a", "b", "run"]
    assert not list(tmp_path.glob("*/.*"))


@pytest.mark.parametrize("size", [0, 60, 300, 1000, 3000, 10_000])
def test_a_disk_that_is_full_at_any_moment_is_a_sentence_and_no_loss(tmp_path, size):
    p = draw(CFG)
    hf.save(tmp_path / "a", CFG, p)
    steps = [lambda: conversion.to_run(tmp_path / "a", tmp_path / "run", **QUIET),
             lambda: conversion.to_released(tmp_path / "run", tmp_path / "b", **QUIET),
             lambda: hf.save(tmp_path / "c", CFG, p)]
    for step, name in zip(steps, ("run", "b", "c")):
        with files_of_at_most(size), pytest.raises(UserError, match=r"(?i)file too large"):
            step()
        assert not (tmp_path / name).exists()
        step()
    same(weights.load(tmp_path / "run"), p)
    same_files(tmp_path / "a", tmp_path / "b")
    same_files(tmp_path / "a", tmp_path / "c")
    assert names(tmp_path) == ["a", "b", "c", "run"]
