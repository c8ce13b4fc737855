"""A checkpoint is exactly what was saved, or it is not there; damage is found, never read."""

import os
import random
import resource
import shutil
import subprocess
import sys
import time
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from dsjax import params
from dsjax.checkpoint import files
from dsjax.checkpoint.store import Store, StoreError, load_params
from dsjax.config.model import MLAConfig, ModelConfig, MoEConfig
from dsjax.errors import UserError
from dsjax.model import transformer

EXTRA = {"loader": {"row": 3, "rng": [2**63, 0.1]}, "metrics_bytes": 12345, "name": "tiny \u00e9"}
MODEL = ModelConfig(
    31, 8, 3, 1, 12, MLAConfig(3, 4, 6, 2, 5), MoEConfig(5, 2, 7, groups=1), mtp_depth=1
)


class Moments(NamedTuple):
    count: Any
    mu: Any


@struct.dataclass
class Layer:
    w: Any
    bias: Any


@struct.dataclass
class State:
    step: Any
    params: Any
    opt: Any


def _state(seed=0, dim=7):
    k = jax.random.key(seed)
    w = jax.random.normal(k, (5, dim))
    layer = Layer(w.at[0, 0].set(jnp.nan).at[0, 1].set(-0.0), None)
    low = [w.astype(jnp.bfloat16), w.astype(jnp.float8_e4m3fn), jnp.ones(3, jnp.float8_e8m0fnu)]
    opt = (Moments(jnp.int32(seed), {"layer": Layer(None, jnp.arange(3) > 1)}), low)
    host = {"ema": np.arange(6, dtype=np.float64).reshape(2, 3) / 7, "n": np.array(5, np.uint8)}
    return {"train": State(jnp.int32(seed), layer, opt), "host": host}


def _same(got, want):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for (name, a), (_, b) in zip(params.paths(got), params.paths(want)):
        assert isinstance(a, np.ndarray) == isinstance(b, np.ndarray), name
        assert (a.shape, a.dtype) == (b.shape, b.dtype), name
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes(), name


def _abstract(state):
    def one(a):
        is_host = isinstance(a, np.ndarray)
        return np.zeros_like(a) if is_host else jax.ShapeDtypeStruct(a.shape, a.dtype)

    return jax.tree.map(one, state)


def _store(folder, *steps, keep=3):
    store = Store(folder, keep)
    for step in steps:
        store.save(step, _state(step), EXTRA)
    store.wait()
    return store


def test_every_dtype_and_class_comes_back_bit_for_bit(tmp_path):
    store = _store(tmp_path / "a", 4)
    step, state, extra = store.restore(_abstract(_state()))
    assert (step, extra) == (4, EXTRA)
    _same(state, _state(4))
    assert type(state["train"]) is State
    assert type(state["train"].opt[0]) is Moments


def test_a_state_may_be_donated_or_overwritten_as_soon_as_save_returns(tmp_path):
    state = {"w": jnp.arange(1_000_000.0), "host": np.arange(1_000_000.0)}
    store = Store(tmp_path, 1)
    overwrite = jax.jit(lambda w: w * 0 - 1, donate_argnums=0)
    store.save(1, state, {})
    w = overwrite(state["w"])
    state["host"][:] = -1
    w.block_until_ready()
    store.wait()
    _, got, _ = store.restore({"w": w, "host": state["host"]})
    assert np.array_equal(got["w"], np.arange(1_000_000.0, dtype=np.float32))
    assert np.array_equal(got["host"], np.arange(1_000_000.0))


def test_the_newest_are_kept_and_extra_is_that_of_its_own_step(tmp_path):
    store = Store(tmp_path, 2)
    assert store.latest() is None
    for step in (10, 20, 100_000_000):
        store.save(step, _state(), {"step": step})
    store.close()
    assert store.latest() == 100_000_000
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000020", "step-100000000"]
    assert Store(tmp_path, 2).restore(_abstract(_state()))[2] == {"step": 100_000_000}


def test_a_step_saved_again_replaces_the_first(tmp_path):
    store = _store(tmp_path, 5)
    store.save(5, _state(6), {"again": True})
    _, state, extra = store.restore(_abstract(_state()))
    _same(state, _state(6))
    assert extra == {"again": True}
    assert len(list(tmp_path.iterdir())) == 1


def test_a_state_is_restored_onto_another_layout(tmp_path):
    mesh = jax.make_mesh((2, 4), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
    w = np.arange(96.0, dtype=np.float32).reshape(8, 12)
    store = Store(tmp_path, 1)
    store.save(1, {"w": jax.device_put(w, NamedSharding(mesh, P("a", "b")))}, {})
    for axes in (P(("b", "a")), P(None, "a"), P()):
        other = NamedSharding(mesh, axes)
        like = {"w": jax.ShapeDtypeStruct(w.shape, w.dtype, sharding=other)}
        got = store.restore(like)[1]["w"]
        assert got.sharding == other
        assert np.array_equal(got, w)
    got = store.restore({"w": jax.ShapeDtypeStruct(w.shape, w.dtype)})[1]["w"]
    assert got.devices() == {jax.devices()[0]}  # where none is asked for
    assert np.array_equal(got, w)


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
    _store(tmp_path, 1)
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
        with pytest.raises(files.Damaged, match=name.name):
            files.verify(copy)
        shutil.rmtree(copy)


def test_a_damaged_newest_checkpoint_is_passed_over_with_a_sentence(tmp_path):
    store, said = _store(tmp_path, 1, 2, 3), []
    next((tmp_path / files.name(3)).rglob("manifest.ocdbt")).unlink()
    (tmp_path / files.name(2) / files.MANIFEST).write_text("{")
    step, state, _ = store.restore(_abstract(_state()), say=said.append)
    assert step == 1
    _same(state, _state(1))
    assert len(said) == 2
    assert "checkpoint 3 is damaged (" in said[0]
    assert "manifest.ocdbt is missing" in said[0]
    assert said[0].endswith("going back to checkpoint 1")
    assert store.latest() == 1  # the others are out of the sequence, but there
    assert (tmp_path / "damaged-00000003").is_dir()
    store.save(2, _state(2), {})
    assert store.restore(_abstract(_state()), say=said.append)[0] == 2
    assert len(said) == 2


def test_no_readable_checkpoint_is_a_sentence_and_nothing_is_moved(tmp_path):
    with pytest.raises(UserError, match=r"no checkpoint in .*; train first"):
        Store(tmp_path / "absent", 1).restore(_abstract(_state()))
    store = _store(tmp_path, 1, 2)
    for step in (1, 2):
        os.truncate(tmp_path / files.name(step) / files.MANIFEST, 5)
    for _ in range(2):
        with pytest.raises(UserError, match=r"can be read \(checkpoint 2: .*checkpoint 1: "):
            store.restore(_abstract(_state()))


def test_another_models_checkpoint_is_refused_by_its_first_different_leaf(tmp_path):
    store = _store(tmp_path, 1)
    with pytest.raises(UserError) as caught:
        store.restore(_abstract(_state(dim=9)))
    text = str(caught.value)
    assert "train.params.w is float32[5, 7] there and float32[5, 9] in this config" in text
    assert "--place.out" in text
    state = _abstract(_state())
    with pytest.raises(UserError, match="has no extra_leaf, which this config needs"):
        store.restore({**state, "extra_leaf": np.zeros(2)})
    with pytest.raises(UserError, match=r"has host\.ema, which this config does not have"):
        store.restore({"train": state["train"]})
    state["host"]["ema"] = np.zeros((2, 3), np.float32)
    with pytest.raises(UserError, match=r"host\.ema is float64.* there and float32"):
        store.restore(state)


def test_what_is_not_an_array_is_refused_before_anything_is_written(tmp_path):
    store = Store(tmp_path, 1)
    for leaf in (3.0, jax.random.key(0)):
        with pytest.raises(TypeError, match=r"the leaf x\.y is "):
            store.save(1, {"x": {"y": leaf}}, {})
    with pytest.raises(TypeError, match="JSON"):
        store.save(1, {"x": np.ones(2)}, {"bad": object()})
    assert not list(tmp_path.iterdir())


def test_no_pickle_is_written(tmp_path):
    _store(tmp_path, 1)
    for path in tmp_path.rglob("*"):
        if path.is_file():
            head = path.read_bytes()[:2]
            assert not (head[:1] == b"\x80" and head[1:] <= b"\x05"), path  # pickle protocols 2-5
            assert path.suffix not in {".pkl", ".pickle", ".npy"}


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
    big = _state(2) | {"big": np.random.default_rng(0).random(500_000)}
    with pytest.raises(StoreError) as caught:
        store.save(2, big, {}) or store.wait()
    lift()
    text = str(caught.value)
    assert "checkpoint 2 could not be written" in text
    assert f"({words}" in text
    assert "checkpoint 1 is whole" in text
    assert "\n" not in text
    assert sorted(p.name for p in store.folder.iterdir()) == [files.name(1)]
    _same(store.restore(_abstract(_state()), say=pytest.fail)[1], _state(1))
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
        store = _store(tmp_path / "run", 1)
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
    store = _store(tmp_path, 1)
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
        Store(folder / "checkpoints", 1).save(1, _state(), {})


# Parameters alone


def _params():
    rng = np.random.default_rng(0)
    like = params.abstract(transformer.specs(MODEL))
    return jax.tree.map(lambda a: jnp.asarray(rng.random(a.shape), a.dtype), like)


def test_parameters_and_their_average_are_read_alone(tmp_path):
    p = _params()
    ema = jax.tree.map(lambda a: np.asarray(a) / 2, p)
    opt = (Moments(jnp.int32(1), jax.tree.map(lambda a: a.astype(jnp.bfloat16), p)),)
    store = Store(tmp_path / "checkpoints", 2)
    store.save(1, State(jnp.int32(1), p, opt), {})
    store.wait()
    with pytest.raises(UserError, match="holds no 'ema'"):
        load_params(tmp_path, MODEL, "ema")
    store.save(2, {"train": State(jnp.int32(2), p, opt), "ema": ema}, {})
    store.wait()
    _same(load_params(tmp_path, MODEL), p)
    _same(load_params(tmp_path, MODEL, "ema"), jax.tree.map(jnp.asarray, ema))


def test_parameters_of_another_model_are_refused_and_damage_is_passed_over(tmp_path):
    p, said = _params(), []
    store = Store(tmp_path / "checkpoints", 2)
    for step in (1, 2):
        store.save(step, State(jnp.int32(step), p, ()), {})
    store.wait()
    wide = ModelConfig(31, 10, 3, 1, 12, MODEL.attention, MODEL.moe, mtp_depth=1)
    with pytest.raises(UserError, match=r"params\.embed is float32\[31, 8\] .* float32\[31, 10\]"):
        load_params(tmp_path, wide)
    broken = tmp_path / "checkpoints" / files.name(2)
    next(broken.rglob("manifest.ocdbt")).unlink()
    _same(load_params(tmp_path, MODEL, say=said.append), p)
    assert len(said) == 1
    assert broken.is_dir()  # a reader moves nothing
    with pytest.raises(UserError, match="no checkpoint in"):
        load_params(tmp_path / "absent", MODEL)
