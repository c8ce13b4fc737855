"""Tensors of zeros (a fresh bias, a dead expert) are stored and read like any other numbers."""

import dataclasses

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from dsjax import weights
from dsjax.checkpoint import arrays, files, manifest
from dsjax.checkpoint.store import Store
from dsjax.released import convert, hf
from dsjax.released.write import Form
from tests.released.test_hf import CFG, PARAMS, same, same_files

QUIET = {"say": lambda sentence: None}


def dead(p):
    """These parameters with a router's bias of zeros and an expert of zeros, one of them -0."""
    ffn = p.moe.ffn
    experts = jax.tree.map(lambda a: np.concatenate([a[:, :1] * 0, -0.0 * a[:, 1:2], a[:, 2:]], 1),
                           jax.tree.map(np.abs, ffn.experts))
    router = dataclasses.replace(ffn.router, bias=np.zeros_like(ffn.router.bias))
    moe = dataclasses.replace(p.moe, ffn=dataclasses.replace(ffn, router=router, experts=experts))
    return dataclasses.replace(p, stacks=p.stacks | {"moe": moe})


@pytest.mark.parametrize(("form", "is_old"), [
    ("float32", False), ("bfloat16", False), ("fp8", False), ("float32", True),
    *(pytest.param(form, True, marks=pytest.mark.exhaustive) for form in ("bfloat16", "fp8"))],
    ids=["float32-stored", "bfloat16-stored", "fp8-stored", "float32-left_out",
         "bfloat16-left_out", "fp8-left_out"])
def test_a_released_checkpoint_with_zeros_goes_there_and_back(form, is_old, tmp_path, monkeypatch):
    p = dead(PARAMS)
    hf.save(tmp_path / "a", CFG, p, fp8=form == "fp8", dtype=None if form == "fp8" else form)
    if is_old:  # as they were converted once, zeros left out: such folders are still read
        spec = arrays._spec
        monkeypatch.setattr(arrays, "_spec", lambda where: spec(where) | {
            "store_data_equal_to_fill_value": False})
    convert.to_run(tmp_path / "a", tmp_path / "run", **QUIET)
    found = manifest.read(tmp_path / "run" / "checkpoints" / files.name(0))
    name = "experts.w_down.codes" if form == "fp8" else "experts.w_down"
    chunks = [f for f in found.files if f"moe.ffn.{name}/c/" in f and "mtp" not in f]
    assert len(chunks) == 2 * 8 - 2 * is_old  # an expert in each of 2 layers
    if form != "fp8":  # codes are read alike, and then dequantized, which is long in compiling
        wanted = p if form == "float32" else hf.load(tmp_path / "a", "stored", **QUIET)[1]
        same(weights.load(tmp_path / "run"), wanted)
    wanted = convert.Wanted(Form(is_fp8=form == "fp8"))
    convert.to_released(tmp_path / "run", tmp_path / "b", wanted, **QUIET)
    same_files(tmp_path / "a", tmp_path / "b")


DTYPES = ["float32", "float64", "float16", "bfloat16", "float8_e4m3fn", "float8_e8m0fnu", "int32",
          "int64", "uint8", "bool"]


def test_a_state_of_zeros_of_every_dtype_is_restored(tmp_path):
    host = {d: np.zeros((3, 5), getattr(ml_dtypes, d, d)) for d in DTYPES}
    wide = {d for d in DTYPES if d.endswith("64")}
    state = {"host": host, "scalar": jnp.zeros(()),
             "device": {d: jnp.asarray(a) for d, a in host.items() if d not in wide},
             "minus": jnp.full((4, 4), -0.0)}
    kept = Store(tmp_path, keep=1)
    kept.save(1, state, {})
    _, got, _ = kept.restore(state)
    kept.close()
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(state), strict=True):
        assert a.dtype == b.dtype
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
