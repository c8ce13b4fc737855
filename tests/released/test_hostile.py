"""A released checkpoint comes from anybody: whatever its files hold is read or refused by name.

Nothing is waited for, no number is guessed, and a sentence is of a length that is read.
"""

import json
import os
import shutil
import struct

import pytest

from dsjax.config.model import MLAConfig, ModelConfig, MoEConfig
from dsjax.errors import UserError
from dsjax.released import config, files, hf, read
from tests.released.test_hf import draw

CFG = ModelConfig(30, 16, 2, 1, 24, MLAConfig(1, 8, 8, 4, 8),
                  MoEConfig(4, 2, 8, groups=2, groups_per_token=1), mtp_depth=1)
WEIGHTS = "model-00001-of-00001.safetensors"
EMBED = "model.embed_tokens.weight"
DEEP = b"[" * 100_000


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "released"
    hf.save(folder, CFG, draw(CFG))
    return folder


@pytest.fixture
def folder(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "released")


def refused(folder, *words):
    with pytest.raises(UserError) as raised:
        read.open_folder(folder, "stored")
    said = str(raised.value)
    assert len(said) < 900
    for word in words:
        assert word in said
    assert "; " in said  # and then the remedy


def entry(change, extra=0):
    """An edit of a file's header: what the embedding's entry becomes, and bytes after the data."""
    def edit(head, body):
        return json.dumps(head | {EMBED: change(head[EMBED])}).encode(), body + bytes(extra)
    return edit


def field(name, value):
    return entry(lambda tensor: tensor | {name: value})


def added(name, shape, size, dtype="F32"):
    def edit(head, body):
        tensor = {"dtype": dtype, "shape": shape, "data_offsets": [len(body), len(body) + size]}
        return json.dumps(head | {name: tensor}).encode(), body + bytes(size)
    return edit


def text(data):
    return lambda head, body: (data, body)


HEADERS = {
    "null": text(b"null"), "list": text(b"[]"), "deep": text(DEEP), "empty": text(b"{}"),
    "deep objects": text(b'{"a":' * 100_000), "no utf-8": text(b"\xff\xfe"),
    "named twice": lambda head, body: (
        json.dumps(head).encode()[:-1] + b"," +
        json.dumps({EMBED: head["lm_head.weight"]}).encode()[1:], body),
    "null tensor": entry(lambda tensor: None), "listed tensor": entry(lambda tensor: []),
    "bare tensor": entry(lambda tensor: {"dtype": "F32"}),
    "cut": lambda head, body: (json.dumps(head).encode(), body[:-1]),
    "longer": lambda head, body: (json.dumps(head).encode(), body + b"x"),
    "long name": added("x" * 100_000, [1], 4), "odd name": added("\ud800\x1b[2J\n", [1], 4),
    "scalar frequency": added("model.layers.0.self_attn.rotary_emb.inv_freq", [], 4),
    "long frequencies": added("model.layers.0.self_attn.rotary_emb.inv_freq", [2**40], 4),
    **{f"offsets {value}": field("data_offsets", value) for value in (
        [-4, 10], [0.5, 10], [2**63, 2**63 + 4], [2**70, 2**71], [100, 0], [0, 1, 2], ["0", "4"],
        None, [float("nan"), 1], [0, 10**12], [64, 64 + 30 * 16 * 4])},
    **{f"shape {value}": field("shape", value) for value in (
        [-30, 16], [30.0, 16], [], [30, 4, 4], [16, 30], ["30", 16], None, [2**40, 2**40],
        [2**63, 2], [0, 16], 480, [True, 16])},
    **{f"dtype {value}": field("dtype", value) for value in (
        "F64", "I64", "BOOL", "F8_E5M2", "F4", "U8", "XX", "", None, 3, ["F32"])},
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_header_that_lies_is_refused(folder, name):
    raw = (folder / WEIGHTS).read_bytes()
    size = struct.unpack("<Q", raw[:8])[0]
    head, body = HEADERS[name](json.loads(raw[8 : 8 + size]), raw[8 + size :])
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(head)) + head + body)
    refused(folder, str(folder))


@pytest.mark.parametrize("data", [
    b"", bytes(7), bytes(4096), b"\xff" * 8, struct.pack("<Q", 2**40) + b"{}", b"<html>404" * 100,
    b"version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 123\n",
], ids=["empty", "short", "zeros", "longest", "long", "page", "pointer"])
def test_a_file_that_is_no_safetensors_is_refused(folder, data):
    (folder / WEIGHTS).write_bytes(data)
    refused(folder, WEIGHTS, "download it again")


@pytest.mark.parametrize("kind", ["pipe", "folder", "gone", "itself"])
@pytest.mark.parametrize("is_single", [True, False])
def test_weights_that_are_no_file_are_not_waited_for(folder, kind, is_single):
    path = folder / WEIGHTS
    if is_single:
        (folder / files.INDEX).unlink()
        path = path.rename(folder / files.SINGLE)
    path.unlink()
    {"pipe": lambda: os.mkfifo(path), "folder": path.mkdir, "gone": lambda: path.symlink_to("x"),
     "itself": lambda: path.symlink_to(path.name)}[kind]()
    refused(folder, path.name)


TEXTS = {"null": b"null", "list": b"[]", "text": b'"x"', "number": b"3", "empty": b"",
         "deep": DEEP, "no utf-8": b"\xff\0", "digits": b'{"vocab_size":' + b"9" * 5000 + b"}",
         "zeros": bytes(99), "nan": b"NaN"}


@pytest.mark.parametrize("name", ["config.json", files.INDEX])
@pytest.mark.parametrize("kind", TEXTS)
def test_json_of_another_kind_is_refused(folder, name, kind):
    (folder / name).write_bytes(TEXTS[kind])
    refused(folder, name)


@pytest.mark.parametrize("value", [
    None, [], {}, "x", 3, {EMBED: None}, {EMBED: [WEIGHTS]}, {EMBED: 1},
    {EMBED: "../x.safetensors"}, {EMBED: "/etc/x.safetensors"}, {EMBED: "a\0.safetensors"},
    {EMBED: "\ud800.safetensors"},
    {EMBED: "x" * 5000 + ".safetensors"}, {EMBED: "x/y.safetensors"}, {EMBED: WEIGHTS},
], ids=repr)
def test_an_index_that_lies_is_refused(folder, value):
    (folder / files.INDEX).write_text(json.dumps({"weight_map": value}))
    refused(folder, files.INDEX)


NUMBERS = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads",
           "kv_lora_rank", "n_routed_experts", "num_experts_per_tok", "n_group", "topk_group",
           "rms_norm_eps", "routed_scaling_factor", "rope_theta", "num_nextn_predict_layers")
WRONG = [[], {}, "x", "3", -1, 2**100, 1e400, float("nan"), True, [1], "\x1b[2J"]
CONFIGS = [(name, value) for name in NUMBERS for value in WRONG] + [
    (name, value) for name, values in {
        "model_type": [None, 3, [], "llama"],
        "eos_token_id": ["x", 1.5, {}, [None], True, 2**70, float("nan")],
        "architectures": ["x", 3, [3]],
        "max_position_embeddings": ["x", -1, 0, 1.5, [4096]],
        "use_cache": ["yes", 3],
        "torch_dtype": [3, {}],
        "topk_method": [None, 3, []],
        "norm_topk_prob": [None, 1, "true"],
        "hidden_act": [3, [], "gelu"],
        "rope_scaling": [3, "yarn", [], {"type": 3}, {"type": ["yarn"]}, {"type": "yarn"},
                         {"type": "yarn", "factor": "x", "original_max_position_embeddings": 4096},
                         {"type": "yarn", "factor": -1, "original_max_position_embeddings": 4096}],
        "quantization_config": [3, "fp8", [1], {"quant_method": ["fp8"]},
                                {"quant_method": "fp8", "weight_block_size": "x"},
                                {"quant_method": "fp8", "scale_fmt": {}}],
    }.items() for value in values]


def test_an_attribute_of_another_kind_is_refused_by_name(folder):
    whole = json.loads((folder / "config.json").read_text())
    for name, value in CONFIGS:
        (folder / "config.json").write_text(json.dumps(whole | {name: value}))
        try:
            refused(folder, "config.json")
        except BaseException as error:
            raise AssertionError(f"{name}={value!r}") from error


def test_a_checkpoint_to_be_like_gives_nothing_that_would_not_load(whole):
    kept = json.loads((whole / "config.json").read_text())
    for name, value in CONFIGS:
        if name in config.INERT | {"rope_theta"}:
            with pytest.raises(UserError, match="to be like"):
                config.write(CFG, "float32", like=kept | {name: value})
    assert config.write(CFG, "float32", like=kept) == kept
