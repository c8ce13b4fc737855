"""Damage is found, never read; a save that dies or fails leaves the former checkpoint whole."""

import os
import random
import resource
import shutil
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest

from dsjax.checkpoint import files
from dsjax.checkpoint.manifest import MANIFEST, Damaged
from dsjax.checkpoint.store import Store, StoreError
from dsjax.errors import UserError
from tests.checkpoint.stored import abstract, assert_same, some_state, written

# After a failed save orbax closes its event loop, and a write of the same save that ends later
# finds nobody to tell: Python reports that as an exception that nothing could catch.
pytestmark = pytest.mark.filterwarnings(
    "ignore:(?s).*Event loop is closed:pytest.PytestUnraisableExceptionWarning"
)


def _damages():
    def flip(path, rng):
        raw = bytearray(path.read_bytes())
        raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
        path.write_bytes(raw)

    def cut(path, rng):
        os.truncate(path, path.stat().st_size // 2)

    def grow(path, rng):
        path.write_bytes(path.read_bytes() + b"\0")

    def delete(path, rng):
        path.unlink()

    return [flip, cut, grow, delete]


@pytest.mark.parametrize("damage", _damages())
def test_any_damage_to_any_file_is_found(tmp_path, damage):
    written(tmp_path, 1)
    whole, rng = tmp_path / files.name(1), random.Random(7)
    names = [p.relative_to(whole) for p in whole.rglob("*") if p.is_file()]
    assert len(names) > 5
    for name in names:
        if damage.__name__ in ("flip", "cut") and not (whole / name).stat().st_size:
            continue
        copy = tmp_path / "copy"
        shutil.copytree(whole, copy)
        files.verify(copy)
        damage(copy / name, rng)
        with pytest.raises(Damaged, match=name.name):
            files.verify(copy)
        shutil.rmtree(copy)


def test_a_damaged_newest_checkpoint_is_passed_over_with_a_sentence(tmp_path):
    store, said = written(tmp_path, 1, 2, 3), []
    next((tmp_path / files.name(3)).rglob("manifest.ocdbt")).unlink()
    (tmp_path / files.name(2) / MANIFEST).write_text("{")
    step, state, _ = store.restore(abstract(some_state()), say=said.append)
    assert step == 1
    assert_same(state, some_state(1))
    assert len(said) == 2
    assert "checkpoint 3 is damaged (" in said[0]
    assert "manifest.ocdbt is missing" in said[0]
    assert said[0].endswith("going back to checkpoint 1")
    assert store.latest() == 1  # the others are out of the sequence, but there
    assert (tmp_path / "damaged-00000003").is_dir()
    store.save(2, some_state(2), {})
    assert store.restore(abstract(some_state()), say=said.append)[0] == 2
    assert len(said) == 2


def test_no_readable_checkpoint_is_a_sentence_and_nothing_is_moved(tmp_path):
    with pytest.raises(UserError, match=r"no checkpoint in .*; train first"):
        Store(tmp_path / "absent", 1).restore(abstract(some_state()))
    store = written(tmp_path, 1, 2)
    for step in (1, 2):
        os.truncate(tmp_path / files.name(step) / MANIFEST, 5)
    for _ in range(2):
        with pytest.raises(UserError, match=r"can be read \(checkpoint 2: .*checkpoint 1: "):
            store.restore(abstract(some_state()))


# Interrupted saves

WRITER = """if True:
    import sys, numpy as np
    from dsjax.checkpoint.store import Store
    store = Store(sys.argv[1], 2)
    for step in range(1, 1000):
        store.save(step, {"w": np.full(300_000, step, np.float32)}, {"step": step})
        print(step, flush=True)  # the save before this one is finished
"""


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_kill_9_while_saving_leaves_the_former_latest_or_a_whole_new_one(tmp_path, seed):
    rng = random.Random(seed)
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, tmp_path],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    for _ in range(rng.randrange(2, 8)):
        begun = int(writer.stdout.readline())
    time.sleep(rng.random() * 0.15)
    writer.kill()
    begun = max([begun, *map(int, writer.stdout.read().split())])
    assert writer.wait() == -9
    assert writer.stderr.read() == b""  # orbax's remarks do not reach the terminal
    writer.stdout.close()
    writer.stderr.close()
    store = Store(tmp_path, 2)
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]
    latest = store.latest()
    assert latest in (begun - 1, begun, begun + 1)
    like = {"w": np.zeros(300_000, np.float32)}
    step, state, extra = store.restore(like, say=pytest.fail)
    assert (step, extra) == (latest, {"step": latest})
    assert np.array_equal(state["w"], np.full(300_000, latest))


def _assert_survived(store, words, lift):
    """Step 2 does not fit; step 1 stays, nothing is left behind, and step 2 fits after `lift`."""
    big = some_state(2) | {"big": np.random.default_rng(0).random(500_000)}
    with pytest.raises(StoreError) as caught:
        store.save(2, big, {}) or store.wait()
    lift()
    text = str(caught.value)
    assert "checkpoint 2 could not be written" in text
    assert f"({words}" in text
    assert "checkpoint 1 is whole" in text
    assert "\n" not in text
    assert sorted(p.name for p in store.folder.iterdir()) == [files.name(1)]
    assert_same(store.restore(abstract(some_state()), say=pytest.fail)[1], some_state(1))
    store.save(2, big, {})
    store.wait()
    assert store.latest() == 2


@pytest.mark.parametrize("is_foreseen", [True, False])
def test_a_full_disk_is_a_sentence_and_the_previous_checkpoint_whole(
    tmp_path, monkeypatch, is_foreseen
):
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(tmp_path)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small disk is not permitted here")
    try:
        store = written(tmp_path / "run", 1)
        words = "it needs 3.8 MiB and the disk has 1."
        if not is_foreseen:
            monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=2**40))
            words = "no space left on device)"
        grow = ["mount", "-o", "remount,size=20m", str(tmp_path)]
        _assert_survived(store, words, lambda: subprocess.run(grow, check=True))
        store.close()
    finally:
        subprocess.run(["umount", "-l", str(tmp_path)], check=True)


def test_a_file_size_limit_is_a_sentence_and_the_previous_checkpoint_whole(tmp_path):
    store = written(tmp_path, 1)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)

    def lift():
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)

    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, limit[1]))
        _assert_survived(store, "file too large)", lift)
    finally:
        lift()


def test_a_folder_that_cannot_be_made_is_a_sentence(tmp_path):
    folder = tmp_path / "file"
    folder.write_text("in the way")
    with pytest.raises(StoreError, match="there is none before it"):
        Store(folder / "checkpoints", 1).save(1, some_state(), {})
