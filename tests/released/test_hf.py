"""Weights are loaded as they were written, number for number, in every dtype and on every mesh."""

import dataclasses
import filecmp
import json
import operator

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from dsjax import disk, params
from dsjax.checkpoint.boxes import region
from dsjax.checkpoint.reader import Leaf
from dsjax.checkpoint.sink import Buffers
from dsjax.config.loss import LossConfig
from dsjax.config.model import MLAConfig, ModelConfig, MoEConfig, RopeConfig, YarnConfig
from dsjax.errors import UserError
from dsjax.model import transformer
from dsjax.numerics import scaled
from dsjax.numerics.scaled import Scaled
from dsjax.released import files, hf, rows
from dsjax.released.names import SCALE, placements

# Odd sizes, larger than a 128x128 block where that matters, so that blocks have edges.
CFG = ModelConfig(
    vocab=37, d_model=140, layers=3, dense_layers=1, dense_dim=150,
    attention=MLAConfig(heads=3, q_rank=131, kv_rank=9, nope_dim=70, rope_dim=6, value_dim=50),
    moe=MoEConfig(experts=8, experts_per_token=2, expert_dim=130, shared_experts=2, groups=4,
                  groups_per_token=2, scale=2.5),
    mtp_depth=2, rope=RopeConfig(yarn=YarnConfig()),
)
LITE = dataclasses.replace(
    CFG, attention=dataclasses.replace(CFG.attention, heads=5, q_rank=None), mtp_depth=0,
    moe=dataclasses.replace(CFG.moe, score="softmax", is_normalized=False, has_bias=False,
                            group_score="max"),
)


def draw(cfg, seed=0):
    rng = np.random.default_rng(seed)
    return params.map_specs(
        lambda s: jnp.asarray(rng.standard_normal(s.shape), jnp.float32), transformer.specs(cfg)
    )


PARAMS = draw(CFG)


def same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for (name, x), (_, y) in zip(params.paths(a), params.paths(b)):
        x, y = np.asarray(x), np.asarray(y)
        assert (x.shape, x.dtype) == (y.shape, y.dtype), name
        assert x.tobytes() == y.tobytes(), name


def same_files(a, b):
    names = sorted(p.name for p in a.iterdir())
    assert names == sorted(p.name for p in b.iterdir())
    assert all(filecmp.cmp(a / n, b / n, shallow=False) for n in names)


@pytest.mark.parametrize("cfg", [CFG, LITE], ids=["v3", "v2_lite"])
def test_float32_comes_back_bit_for_bit(cfg, tmp_path):
    p = draw(cfg)
    hf.save(tmp_path / "a", cfg, p)
    read, q = hf.load(tmp_path / "a")
    assert read == cfg
    same(p, q)


FORMS = {"float32": {}, "bfloat16": {"dtype": "bfloat16"}, "fp8": {"fp8": True},
         "ue8m0": {"fp8": "ue8m0"}}


@pytest.mark.parametrize("form", FORMS)
def test_save_load_save_gives_the_same_bytes(form, tmp_path):
    hf.save(tmp_path / "a", CFG, PARAMS, **FORMS[form])
    cfg, p = hf.load(tmp_path / "a", dtype="stored")
    hf.save(tmp_path / "b", cfg, p, fp8=FORMS[form].get("fp8", False))
    same_files(tmp_path / "a", tmp_path / "b")


def test_a_matrix_is_turned_and_cut_as_the_released_code_reads_it(tmp_path):
    """Written out by hand for one tensor of each kind, against y = W x of the released form."""
    hf.save(tmp_path / "a", CFG, PARAMS)
    released = files.open_checkpoint(tmp_path / "a")

    def tensor(name):
        t = released[name]
        return t.rows(0, t.shape[0])

    attention = "model.layers.1.self_attn."
    p = jax.tree.map(np.asarray, PARAMS)
    q = tensor(attention + "q_b_proj.weight").reshape(3, 76, 131)  # heads of [nope; rope]
    np.testing.assert_array_equal(q.transpose(2, 0, 1), p.moe.attn.w_uq[0])
    kv = tensor(attention + "kv_b_proj.weight").reshape(3, 120, 9)  # heads of [nope; value]
    np.testing.assert_array_equal(kv.transpose(2, 0, 1), p.moe.attn.w_ukv[0])
    out = tensor(attention + "o_proj.weight").reshape(140, 3, 50)
    np.testing.assert_array_equal(out.transpose(1, 2, 0), p.moe.attn.w_o[0])
    gate, up, down = (tensor(f"model.layers.2.mlp.experts.5.{n}_proj.weight")
                      for n in ("gate", "up", "down"))
    np.testing.assert_array_equal(gate.T, p.moe.ffn.experts.w_gate_up[1, 5, :, 0])
    np.testing.assert_array_equal(up.T, p.moe.ffn.experts.w_gate_up[1, 5, :, 1])
    np.testing.assert_array_equal(down.T, p.moe.ffn.experts.w_down[1, 5])
    join = tensor("model.layers.4.eh_proj.weight")  # columns 0..139 read the embedding
    np.testing.assert_array_equal(join[:, :140].T, p.mtp.w_proj[1, :140])
    np.testing.assert_array_equal(tensor("model.layers.3.embed_tokens.weight"), p.embed)
    np.testing.assert_array_equal(tensor("model.layers.4.shared_head.head.weight"), p.head.T)


def test_fp8_is_dequantized_as_the_official_code_does(tmp_path):
    """weight_dequant of inference/kernel.py, element by element, blocks at the edges included."""
    hf.save(tmp_path / "a", CFG, PARAMS, fp8=True)
    released = files.open_checkpoint(tmp_path / "a")
    _, wide = hf.load(tmp_path / "a")
    _, low = hf.load(tmp_path / "a", dtype="bfloat16")
    for place in placements(CFG):
        if not place.is_product or place.part == 1 or (len(place.at) > 1 and place.at[1]):
            continue
        codes, scales = released[place.name], released[place.name + SCALE]
        x, s = codes.rows(0, codes.shape[0]), scales.rows(0, scales.shape[0])
        i, j = np.indices(x.shape)
        y = x.astype(np.float32) * s[i // 128, j // 128]
        for tree, dtype in ((wide, np.float32), (low, ml_dtypes.bfloat16)):
            leaf = np.asarray(dict(params.paths(tree))[place.leaf])
            got = rows.to_released(place, leaf[place.index(0, place.shape[0])])
            np.testing.assert_array_equal(got, y.astype(dtype), err_msg=place.name)


def test_quantizing_for_export_is_that_of_training():
    rng, quantized = np.random.default_rng(0), jax.jit(scaled.quantize, static_argnums=(1, 2))
    for shape in ((300, 200), (128, 256), (5, 700)):
        x = rng.standard_normal(shape) * 10.0 ** rng.integers(-6, 3, shape)
        x[:3] = 0
        for is_pow2 in (False, True):
            codes, scales = rows.quantize(x.astype(np.float32), is_pow2)
            q = quantized(x.astype(np.float32), (128, 128), is_pow2)
            assert codes.tobytes() == np.asarray(q.codes).tobytes()
            assert scales.tobytes() == np.asarray(jax.jit(scaled.scale_values)(q.scales)).tobytes()
            assert np.abs(codes.astype(np.float32)).max() <= 448
            if is_pow2:
                assert (np.frexp(scales)[0] == 0.5).all()


def test_kept_fp8_is_the_numbers_that_dequantizing_gives(tmp_path):
    hf.save(tmp_path / "a", CFG, PARAMS, fp8=True)
    _, kept = hf.load(tmp_path / "a", dtype="fp8")
    _, wide = hf.load(tmp_path / "a")
    for part in ("ffn.experts.w_gate_up", "attn.w_uq", "attn.w_o"):
        a, b = (operator.attrgetter(part)(p.moe) for p in (kept, wide))
        np.testing.assert_array_equal(jax.jit(scaled.dequantize)(a).reshape(b.shape), b)
    held = jax.tree.leaves(kept, is_leaf=lambda leaf: isinstance(leaf, Scaled))
    specs = [s for _, s in params.paths(transformer.specs(CFG))]
    assert [isinstance(a, Scaled) for a in held] == [s.is_product for s in specs]
    hf.save(tmp_path / "b", CFG, kept)  # without fp8 the matrices are bfloat16
    _, low = hf.load(tmp_path / "b", dtype="stored")
    np.testing.assert_array_equal(low.moe.attn.w_uq, wide.moe.attn.w_uq.astype(jnp.bfloat16))


def test_power_of_two_scales_of_8_bits_are_kept(tmp_path):
    hf.save(tmp_path / "a", CFG, PARAMS, fp8="ue8m0")
    tensors = {
        t.name: t.rows(0, t.shape[0]) for t in files.open_checkpoint(tmp_path / "a").values()
    }
    small = {n: a.astype(ml_dtypes.float8_e8m0fnu) if n.endswith(SCALE) else a
             for n, a in tensors.items()}
    (tmp_path / "b").mkdir()
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    assert config["quantization_config"]["scale_fmt"] == "ue8m0"
    disk.write_json(tmp_path / "b" / "config.json", config)
    files.write_file(tmp_path / "b" / "model.safetensors", small)
    cfg, p = hf.load(tmp_path / "b", dtype="fp8")
    assert p.moe.attn.w_uq.scales.dtype == jnp.float8_e8m0fnu
    _, wide = hf.load(tmp_path / "a")
    np.testing.assert_array_equal(jax.jit(scaled.dequantize)(p.moe.attn.w_dq), wide.moe.attn.w_dq)
    hf.save(tmp_path / "c", cfg, p, fp8=True)
    again = files.open_checkpoint(tmp_path / "c")
    for name, a in small.items():
        assert again[name].rows(0, a.shape[0]).tobytes() == a.tobytes(), name


def test_the_routers_bias_stays_float32(tmp_path):
    hf.save(tmp_path / "a", CFG, PARAMS, dtype="bfloat16")
    _, p = hf.load(tmp_path / "a", dtype="bfloat16")
    assert p.moe.ffn.router.bias.dtype == jnp.float32
    np.testing.assert_array_equal(p.moe.ffn.router.bias, PARAMS.moe.ffn.router.bias)
    assert p.moe.ffn.router.centroids.dtype == jnp.bfloat16


def test_a_bias_that_was_released_in_bfloat16_comes_back_so(tmp_path):
    low = jax.tree.map(lambda a: jax.device_put(np.asarray(a).astype(jnp.bfloat16)), PARAMS)
    hf.save(tmp_path / "a", CFG, low)
    cfg, p = hf.load(tmp_path / "a", dtype="stored")
    assert p.moe.ffn.router.bias.dtype == jnp.bfloat16
    hf.save(tmp_path / "b", cfg, p)
    same_files(tmp_path / "a", tmp_path / "b")
    assert hf.load(tmp_path / "a", dtype="bfloat16")[1].moe.ffn.router.bias.dtype == jnp.float32
    hf.save(tmp_path / "c", cfg, p, dtype="float32")
    assert hf.load(tmp_path / "c", dtype="stored")[1].moe.ffn.router.bias.dtype == jnp.float32


def test_the_tensors_say_whether_queries_are_compressed_where_the_config_does_not(tmp_path):
    for name, cfg in (("with", CFG), ("without", LITE)):
        hf.save(tmp_path / name, cfg, draw(cfg))
        config = json.loads((tmp_path / name / "config.json").read_text())
        del config["q_lora_rank"]
        disk.write_json(tmp_path / name / "config.json", config)
    assert hf.load(tmp_path / "without")[0] == LITE
    with pytest.raises(UserError, match=r"q_a_proj.* config.json means \[1536, 140\]"):
        hf.load(tmp_path / "with")  # 1536 is DeepSeek's and transformers' default


def test_what_is_assumed_is_said(tmp_path):
    hf.save(tmp_path / "a", CFG, PARAMS)
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    assert "aux_loss_alpha" not in config
    del config["routed_scaling_factor"]  # 2.5, which is also the default
    disk.write_json(tmp_path / "a" / "config.json", config)
    said = []
    cfg, p = hf.load(tmp_path / "a", say=said.append)
    assert cfg == CFG
    assert ["routed_scaling_factor=2.5" in s for s in said] == [True, False]
    assert "aux_loss_alpha is not in the config: training would go on with 0.0001" in said[1]
    hf.save(tmp_path / "b", cfg, p, loss=LossConfig(balance=0.25))
    assert json.loads((tmp_path / "b" / "config.json").read_text())["aux_loss_alpha"] == 0.25


def shard(name, shape):
    """Experts over one mesh axis and their channels over another; heads; the rest whole."""
    mesh = jax.make_mesh((4, 2), ("expert", "model"))
    spec = P()
    if ".experts.w_gate_up" in name:
        spec = P(None, "expert", None, None, "model")
    elif ".experts." in name:
        spec = P(None, "expert", "model")
    elif name == "embed":
        spec = P(None, ("expert", "model"))
    elif name.endswith("attn.w_o"):
        spec = P(None, None, "model")
    legal = all(n % 8 == 0 or not axis for n, axis in zip(shape, spec))
    return NamedSharding(mesh, spec if legal or ".experts." in name else P())


@pytest.mark.parametrize("is_tree", [False, True])
def test_a_mesh_gets_the_same_numbers_in_the_places_it_asked_for(is_tree, tmp_path):
    hf.save(tmp_path / "a", CFG, PARAMS)
    shardings = shard
    if is_tree:
        flat = params.paths(transformer.specs(CFG))
        structure = jax.tree.structure(transformer.specs(CFG), is_leaf=params.is_spec)
        shardings = structure.unflatten([shard(n, s.shape) for n, s in flat])
    cfg, p = hf.load(tmp_path / "a", shardings=shardings)
    same(PARAMS, p)
    experts = p.moe.ffn.experts.w_gate_up
    assert experts.addressable_shards[0].data.shape == (2, 2, 140, 2, 65)
    hf.save(tmp_path / "b", cfg, p)
    same_files(tmp_path / "a", tmp_path / "b")


def test_fp8_is_kept_on_a_mesh(tmp_path):
    hf.save(tmp_path / "a", CFG, PARAMS, fp8=True)
    mesh = jax.make_mesh((8,), ("expert",))

    def over_experts(name, shape):
        return NamedSharding(mesh, P(None, "expert") if ".experts." in name else P())

    cfg, p = hf.load(tmp_path / "a", dtype="fp8", shardings=over_experts)
    assert p.moe.ffn.experts.w_down.codes.addressable_shards[0].data.shape == (2, 1, 130, 140)
    hf.save(tmp_path / "b", cfg, p, fp8=True)
    same_files(tmp_path / "a", tmp_path / "b")


def test_devices_apart_from_the_host_are_filled_in_place():
    """The way of accelerators, here on the CPU: donated updates of each device's own buffer."""
    mesh = jax.make_mesh((2, 2), ("a", "b"), devices=jax.devices()[:4])
    sharding = NamedSharding(mesh, P("a", None, "b"))
    leaves = {"x": Leaf((4, 3, 6), np.dtype(np.float32), (4, 3, 6))}
    buffers = Buffers(leaves, lambda name: sharding, host_platforms=())
    first = {d: s.unsafe_buffer_pointer() for d, s in buffers._shards["x"].items()}
    expected = np.random.default_rng(0).standard_normal((4, 3, 6)).astype(np.float32)
    for index in (np.s_[0:3, 0:3, 0:2], np.s_[3:4, 0:3, 0:2], np.s_[0:4, 0:3, 2:6]):
        buffers.put("x", index, expected[index])
    x = buffers.arrays()["x"]
    np.testing.assert_array_equal(x, expected)
    assert {s.device: s.data.unsafe_buffer_pointer() for s in x.addressable_shards} == first
    np.testing.assert_array_equal(region(x, np.s_[1:4, 0:2, 1:5]), expected[1:4, :2, 1:5])


def test_pieces_smaller_than_a_tensor_join_without_a_seam(tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "CHUNK", 1)  # one block of rows at a time
    hf.save(tmp_path / "a", CFG, PARAMS, fp8=True)
    small = hf.load(tmp_path / "a")[1]
    monkeypatch.setattr(rows, "CHUNK", 1 << 30)
    hf.save(tmp_path / "b", CFG, PARAMS, fp8=True)
    same_files(tmp_path / "a", tmp_path / "b")
    same(small, hf.load(tmp_path / "b")[1])


def test_a_large_checkpoint_is_cut_into_files_that_an_index_joins(tmp_path, monkeypatch):
    from dsjax.released import write

    hf.save(tmp_path / "a", CFG, PARAMS, fp8=True)
    monkeypatch.setattr(write, "SHARD", 1)
    hf.save(tmp_path / "b", CFG, PARAMS, fp8=True)
    index = json.loads((tmp_path / "b" / files.INDEX).read_text())
    assert len(set(index["weight_map"].values())) > 5
    same(hf.load(tmp_path / "a")[1], hf.load(tmp_path / "b")[1])
    modes = {p.stat().st_mode for p in (tmp_path / "b").iterdir()}
    assert len(modes) == 1, "weights may be read by whoever may read the config"


def test_mtp_modules_are_left_or_wanted_as_asked(tmp_path):
    hf.save(tmp_path / "a", CFG, PARAMS)
    cfg, p = hf.load(tmp_path / "a", mtp=False)
    assert (cfg.mtp_depth, p.mtp) == (0, None)
    hf.save(tmp_path / "b", cfg, p)
    config = json.loads((tmp_path / "b" / "config.json").read_text())
    disk.write_json(tmp_path / "b" / "config.json", config | {"num_nextn_predict_layers": 1})
    said = []
    assert hf.load(tmp_path / "b", say=said.append)[0] == cfg
    assert "there are no tensors model.layers.3.*: loaded without" in said[0]
    with pytest.raises(UserError, match=r"has no tensors model\.layers\.3"):
        hf.load(tmp_path / "b", mtp=True)


def test_what_a_config_has_no_place_for_is_taken_from_another(tmp_path):
    hf.save(tmp_path / "a", CFG, PARAMS)
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    more = {"eos_token_id": 7, "max_position_embeddings": 163840, "model_type": "kimi_k2"}
    disk.write_json(tmp_path / "a" / "config.json", dict(sorted((config | more).items())))
    (tmp_path / "a" / "tokenizer_config.json").write_text("{}")
    cfg, p = hf.load(tmp_path / "a")
    hf.save(tmp_path / "b", cfg, p, like=tmp_path / "a")
    written = json.loads((tmp_path / "b" / "config.json").read_text())
    assert {k: written[k] for k in more} == more
    same_files(tmp_path / "a", tmp_path / "b")


def test_parameters_of_another_config_are_not_written(tmp_path):
    with pytest.raises(ValueError, match="embed has the shape"):
        hf.save(tmp_path / "a", dataclasses.replace(CFG, vocab=38), PARAMS)
    with pytest.raises(ValueError, match="not those of the config"):
        hf.save(tmp_path / "a", LITE, PARAMS)
    assert not list(tmp_path.iterdir())
