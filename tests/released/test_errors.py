"""A broken checkpoint or a full disk is one clear sentence, and nothing half-written is left."""

import dataclasses
import errno
import json
import os
import pickle
import re

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from dsjax import disk, params
from dsjax.config.model import MLAConfig, ModelConfig, MoEConfig
from dsjax.errors import UserError
from dsjax.model import transformer
from dsjax.released import files, hf
from dsjax.released.write import Form

CFG = ModelConfig(17, 10, 2, 1, 12, MLAConfig(3, 4, 6, 2, 5), MoEConfig(4, 2, 7, scale=2.0),
                  mtp_depth=1)
FILE = "model.safetensors"
GATE = "model.layers.1.mlp.gate.weight"
QUERY = "model.layers.0.self_attn.q_proj.weight"
COPY = "model.layers.2.embed_tokens.weight"


def draw():
    rng = np.random.default_rng(0)
    return params.map_specs(
        lambda s: jnp.asarray(rng.standard_normal(s.shape), jnp.float32), transformer.specs(CFG)
    )


@pytest.fixture
def broken(tmp_path):
    """Makes a checkpoint in one file whose tensors, or config, are changed first."""

    def make(change=lambda tensors: None, fp8=False, config=None):
        hf.save(tmp_path / "whole", CFG, draw(), fp8=fp8)
        found = files.open_checkpoint(tmp_path / "whole")
        tensors = {t.name: t.rows(0, t.shape[0]) for t in found.values()}
        change(tensors)
        folder = tmp_path / "broken"
        folder.mkdir()
        data = json.loads((tmp_path / "whole" / "config.json").read_text()) | (config or {})
        disk.write_json(folder / "config.json", data)
        files.write_file(folder / FILE, tensors)
        return folder

    return make


def refuses(folder, sentence, **more):
    with pytest.raises(UserError, match=re.escape(sentence)) as raised:
        hf.load(folder, **more)
    said = str(raised.value)
    assert "\n" not in said
    assert len(said) < 400
    return said


def test_a_truncated_file(broken):
    folder = broken()
    whole = (folder / FILE).read_bytes()
    (folder / FILE).write_bytes(whole[: len(whole) - 100])
    refuses(folder, f"{folder / FILE} is cut short or is no safetensors file")
    (folder / FILE).write_bytes(whole[:5])
    refuses(folder, "is cut short or is no safetensors file")
    (folder / FILE).write_bytes(b"")
    refuses(folder, "is cut short or is no safetensors file")


def test_a_file_that_the_index_lists_is_missing(tmp_path):
    hf.save(tmp_path / "a", CFG, draw())
    name = next(p.name for p in (tmp_path / "a").glob("*.safetensors"))
    (tmp_path / "a" / name).unlink()
    refuses(tmp_path / "a", f"{tmp_path / 'a' / name} is missing, which {files.INDEX} lists")


def test_an_index_that_leaves_the_folder_or_lies(tmp_path):
    hf.save(tmp_path / "a", CFG, draw())
    index = tmp_path / "a" / files.INDEX
    data = json.loads(index.read_text())
    disk.write_json(index, {"weight_map": data["weight_map"] | {"x": "../b.safetensors"}})
    refuses(tmp_path / "a", "names '../b.safetensors', which is no safetensors file of it")
    disk.write_json(index, {"weight_map": data["weight_map"] | {
        "x": next(iter(data["weight_map"].values()))}})
    refuses(tmp_path / "a", "lacks x, which")
    del data["weight_map"]["lm_head.weight"]
    disk.write_json(index, data)
    refuses(tmp_path / "a", f"holds lm_head.weight, which {files.INDEX} does not list")
    index.write_text("{")
    refuses(tmp_path / "a", "is not JSON")


def test_a_missing_tensor_and_one_too_many(broken):
    def change(tensors):
        del tensors[GATE], tensors[QUERY]

    refuses(broken(change), f"lacks {QUERY}, {GATE}, which its config.json asks for")


def test_a_tensor_without_a_place(broken):
    def change(tensors):
        tensors |= {f"model.layers.0.self_attn.{x}.weight": np.ones(3, np.float32) for x in "abcde"}

    refuses(broken(change), "model.layers.0.self_attn.a.weight, model.layers.0.self_attn.b.weight, "
            "model.layers.0.self_attn.c.weight and 2 more tensors, for which")


def test_a_wrong_shape(broken):
    def change(tensors):
        tensors[GATE] = tensors[GATE].T.copy()

    refuses(broken(change), f"{GATE} has the shape [10, 4], but config.json means [4, 10]")


def test_a_wrong_dtype(broken):
    def change(tensors):
        tensors[GATE] = tensors[GATE].astype(np.int32)

    refuses(broken(change), f"{GATE} is I32; weights are one of F32, BF16")


def test_8_bits_where_no_8_bits_belong(broken):
    def change(tensors):
        tensors[GATE] = tensors[GATE].astype(ml_dtypes.float8_e4m3fn)

    refuses(broken(change), f"{GATE} is float8_e4m3fn, but only the matrices of linear layers")


def test_fp8_without_scales_or_with_scales_of_another_shape(broken, tmp_path):
    def without(tensors):
        del tensors[QUERY + "_scale_inv"]

    folder = broken(without, fp8=True)
    refuses(folder, f"{QUERY} is FP8 without {QUERY}_scale_inv")
    tensors = {t.name: t.rows(0, t.shape[0]) for t in files.open_checkpoint(folder).values()}
    tensors[QUERY + "_scale_inv"] = np.ones((2, 1), np.float32)
    files.write_file(folder / FILE, tensors)
    refuses(folder, "is float32[2, 1], but one scale a 128x128 block is [1, 1]")


def test_scales_without_fp8(broken):
    def change(tensors):
        tensors[QUERY + "_scale_inv"] = np.ones((1, 1), np.float32)

    refuses(broken(change), f"has {QUERY}_scale_inv, for which")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float8", "scale"])
def test_nan_in_weights(broken, dtype):
    def change(tensors):
        name = QUERY + "_scale_inv" if dtype == "scale" else QUERY
        a = tensors[name].copy()
        if dtype == "float8":
            a.view(np.uint8)[0, 0] = 0xFF
        else:
            a = a.astype(ml_dtypes.bfloat16) if dtype == "bfloat16" else a
            a[0, 0] = np.inf if dtype == "bfloat16" else np.nan
        tensors[name] = a

    said = refuses(broken(change, fp8=dtype in ("float8", "scale")), "holds 1 numbers that are not")
    assert QUERY in said


def test_a_pickle_is_refused_without_being_opened(tmp_path):
    (tmp_path / "config.json").write_text("{}")

    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "opened"),)

    hf.save(tmp_path / "a", CFG, draw())
    folder = tmp_path / "pickled"
    folder.mkdir()
    (folder / "config.json").write_text((tmp_path / "a" / "config.json").read_text())
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))
    refuses(folder, "has only pickled weights (pytorch_model.bin), which can run any program")
    assert not (tmp_path / "opened").exists()


def test_folders_that_hold_no_checkpoint(tmp_path):
    refuses(tmp_path / "none", "is missing; give the folder of a whole checkpoint")
    hf.save(tmp_path / "a", CFG, draw())
    for path in (tmp_path / "a").glob("model*"):
        path.unlink()
    refuses(tmp_path / "a", "has no *.safetensors")
    for name in ("x", "y"):
        files.write_file(tmp_path / "a" / f"{name}.safetensors", {name: np.ones(1, np.float32)})
    refuses(tmp_path / "a", f"has 2 *.safetensors but no {files.INDEX}")


def test_a_copy_that_is_none(broken):
    def change(tensors):
        tensors[COPY] = tensors[COPY] + 1

    folder = broken(change)
    refuses(folder, f"{COPY} differs from model.embed_tokens.weight")
    assert hf.load(folder, mtp=False)[1].mtp is None


@pytest.mark.parametrize("name", ["model.layers.2.enorm.bias", "model.layers.2.x.weight"])
def test_a_module_that_is_left_out_must_still_be_one(broken, name):
    def add(tensors):
        tensors[name] = np.ones(10, np.float32)

    refuses(broken(add), f"has {name}, for which a model", mtp=False)


def test_a_module_that_is_left_out_must_have_its_shapes(broken):
    def cut(tensors):
        tensors["model.layers.2.enorm.weight"] = np.ones(9, np.float32)

    refuses(broken(cut), "model.layers.2.enorm.weight has the shape [9]", mtp=False)


def test_modules_that_the_config_does_not_count_cannot_be_wanted(tmp_path):
    p = draw().replace(mtp=None)
    hf.save(tmp_path / "a", dataclasses.replace(CFG, mtp_depth=0), p)
    refuses(tmp_path / "a", "counts no MTP module", mtp=True)


def test_frequencies_that_are_the_configs_own_may_be_left(broken, tmp_path):
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"

    def right(tensors):
        tensors[name] = np.array([1.0], np.float32)

    folder = broken(right)
    hf.load(folder)
    tensors = {t.name: t.rows(0, t.shape[0]) for t in files.open_checkpoint(folder).values()}
    files.write_file(folder / FILE, tensors | {name: np.array([0.9], np.float32)})
    refuses(folder, f"has {name}, for which")


def test_choices_that_do_not_exist(broken):
    folder = broken()
    refuses(folder, "the dtype 'half' is not a choice", dtype="half")
    refuses(folder, "has no FP8 matrices to keep", dtype="fp8")
    with pytest.raises(UserError, match="the dtype 'fp8' is not a choice"):
        hf.save(folder / "x", CFG, draw(), dtype="fp8")


def test_layers_of_two_dtypes_need_a_dtype(broken):
    name = "model.layers.1.mlp.experts.2.up_proj.weight"

    def change(tensors):
        tensors[name] = tensors[name].astype(np.float16)

    folder = broken(change)
    refuses(folder, "which one array cannot keep; give a dtype", dtype="stored")
    assert hf.load(folder)[1].moe.ffn.experts.w_gate_up.dtype == jnp.float32


# Writing


def test_flags_that_would_be_ignored_are_refused(tmp_path):
    with pytest.raises(UserError, match="are of FP8 matrices; ask for fp8 too"):
        Form(is_ue8m0=True)
    hf.save(tmp_path / "a", CFG, draw(), fp8=True)
    cfg, p = hf.load(tmp_path / "a", dtype="fp8")
    with pytest.raises(UserError, match="their scales are not powers of two"):
        hf.save(tmp_path / "b", cfg, p, fp8="ue8m0")
    hf.save(tmp_path / "b", cfg, hf.load(tmp_path / "a")[1], fp8="ue8m0")
    cfg, p = hf.load(tmp_path / "b", dtype="fp8")
    hf.save(tmp_path / "c", cfg, p, fp8="ue8m0")


def test_a_file_where_a_folder_would_be(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file is a file"):
        hf.save(tmp_path / "file" / "a", CFG, draw())


def test_a_checkpoint_to_be_like_must_be_released(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")
    with pytest.raises(UserError, match="names no model_type"):
        hf.save(tmp_path / "a", CFG, draw(), like=tmp_path / "run")


def test_a_folder_in_use_is_not_written_over(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "mine").touch()
    with pytest.raises(UserError, match="is already there; move it away"):
        hf.save(tmp_path / "a", CFG, draw())
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["mine"]
    (tmp_path / "empty").mkdir()
    hf.save(tmp_path / "empty", CFG, draw())


def test_a_disk_without_room_is_found_before_writing(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("U", (), {"free": 1234})())
    with pytest.raises(UserError, match=r"needs .* and the disk has 1.234 kB left"):
        hf.save(tmp_path / "a", CFG, draw())
    assert not list(tmp_path.iterdir())


def test_a_disk_that_fills_up_leaves_nothing_under_the_final_name(tmp_path, monkeypatch):
    def full(path, tensors):
        path.with_name(".x.partial").write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files, "write_file", full)
    with pytest.raises(UserError, match=r"\(no space left on device\); nothing of it"):
        hf.save(tmp_path / "a", CFG, draw())
    assert not list(tmp_path.iterdir())


def test_nan_is_not_written(tmp_path):
    p = draw()
    p = p.replace(norm=p.norm.at[3].set(jnp.nan))
    with pytest.raises(UserError, match="norm holds 1 numbers that are not finite"):
        hf.save(tmp_path / "a", CFG, p)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["num_hidden_layers", "num_nextn_predict_layers"])
def test_a_count_of_layers_beyond_the_tensors_is_refused_at_once(broken, name):
    refuses(broken(config={name: 10**9}), "layers with those of MTP, and the checkpoint has")


def test_a_config_of_many_more_experts_is_refused_without_listing_them_all(broken):
    def without_gates(tensors):
        for name in [n for n in tensors if ".mlp.gate." in n]:
            del tensors[name]

    folder = broken(without_gates, config={"n_routed_experts": 10**9})
    refuses(folder, "which its config.json asks for")


def test_a_config_nested_too_deep_is_refused(broken):
    folder = broken()
    (folder / "config.json").write_text("[" * 100_000)
    refuses(folder, "config.json is nested too deep")
