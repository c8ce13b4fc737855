"""A checkpoint is restored as it was saved, bit for bit and class for class, or is refused."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from dsjax import params, weights
from dsjax.checkpoint import files
from dsjax.checkpoint.manifest import MANIFEST
from dsjax.checkpoint.store import Store, extra, tokenizer_of
from dsjax.config.model import MLAConfig, ModelConfig, MoEConfig
from dsjax.errors import UserError
from dsjax.model import transformer
from tests.checkpoint.stored import (
    EXTRA,
    Moments,
    State,
    abstract,
    assert_same,
    some_state,
    written,
)

MODEL = ModelConfig(
    31, 8, 3, 1, 12, MLAConfig(3, 4, 6, 2, 5), MoEConfig(5, 2, 7, groups=1), mtp_depth=1
)


def test_every_dtype_and_class_comes_back_bit_for_bit(tmp_path):
    store = written(tmp_path / "a", 4)
    step, state, extra = store.restore(abstract(some_state()))
    assert (step, extra) == (4, EXTRA)
    assert_same(state, some_state(4))
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
        store.save(step, some_state(), {"step": step})
    store.close()
    assert store.latest() == 100_000_000
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000020", "step-100000000"]
    assert Store(tmp_path, 2).restore(abstract(some_state()))[2] == {"step": 100_000_000}


def test_a_step_saved_again_replaces_the_first(tmp_path):
    store = written(tmp_path, 5)
    store.save(5, some_state(6), {"again": True})
    _, state, extra = store.restore(abstract(some_state()))
    assert_same(state, some_state(6))
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


def test_another_models_checkpoint_is_refused_by_its_first_different_leaf(tmp_path):
    store = written(tmp_path, 1)
    with pytest.raises(UserError) as caught:
        store.restore(abstract(some_state(dim=9)))
    text = str(caught.value)
    assert "train.params.w is float32[5, 7] there and float32[5, 9] in this config" in text
    assert "--output.folder" in text
    state = abstract(some_state())
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
    written(tmp_path, 1)
    for path in tmp_path.rglob("*"):
        if path.is_file():
            head = path.read_bytes()[:2]
            assert not (head[:1] == b"\x80" and head[1:] <= b"\x05"), path  # pickle protocols 2-5
            assert path.suffix not in {".pkl", ".pickle", ".npy"}


# Parameters alone


def load(run, which="params", model=MODEL, say=print):
    return weights.load(run, choice=weights.Choice(model, which), say=say)


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
        load(tmp_path, "ema")
    store.save(2, {"train": State(jnp.int32(2), p, opt), "ema": ema}, {})
    store.wait()
    assert_same(load(tmp_path), p)
    assert_same(load(tmp_path, "ema"), jax.tree.map(jnp.asarray, ema))


def test_parameters_of_another_model_are_refused_and_damage_is_passed_over(tmp_path):
    p, said = _params(), []
    store = Store(tmp_path / "checkpoints", 2)
    for step in (1, 2):
        store.save(step, State(jnp.int32(step), p, ()), {})
    store.wait()
    wide = ModelConfig(31, 10, 3, 1, 12, MODEL.attention, MODEL.moe, mtp_depth=1)
    with pytest.raises(UserError, match=r"embed is float32\[31, 8\] there and \[31, 10\]"):
        load(tmp_path, model=wide)
    broken = tmp_path / "checkpoints" / files.name(2)
    next(broken.rglob("manifest.ocdbt")).unlink()
    assert_same(load(tmp_path, say=said.append), p)
    assert len(said) == 1
    assert broken.is_dir()  # a reader moves nothing
    with pytest.raises(UserError, match="absent holds no weights"):
        load(tmp_path / "absent")


def test_what_is_kept_beside_arrays_is_read_without_them(tmp_path):
    store = Store(tmp_path / "checkpoints", keep=3)
    store.save(1, {"x": jnp.ones(3)}, {})
    store.save(2, {"x": jnp.ones(3)}, {"tokenizer": "0123456789abcdef", "stream": [1]})
    store.save(3, {"x": jnp.ones(3)}, {"tokenizer": "of a damaged one"})
    store.close()
    (tmp_path / "checkpoints" / files.name(3) / MANIFEST).write_text("{}")
    shutil.rmtree(tmp_path / "checkpoints" / files.name(2) / "arrays")
    assert extra(tmp_path)["stream"] == [1]
    assert tokenizer_of(tmp_path) == "0123456789abcdef"
    shutil.rmtree(tmp_path / "checkpoints" / files.name(2))
    assert tokenizer_of(tmp_path) is None
    with pytest.raises(UserError, match="no checkpoint in"):
        tokenizer_of(tmp_path / "elsewhere")
