"""dsjax and transformers are the same function, both ways through a checkpoint; needs torch.

`pip install .[conformance]`, then `python -m pytest tests/conformance -m "slow or not slow"`. The
sweep takes a few minutes; without torch everything here is skipped, and test_hf_golden holds dsjax
to the arrays that this comparison left.
"""

import dataclasses
import json

import numpy as np
import pytest

pytest.importorskip("torch", reason="the live comparison needs pip install .[conformance]")
pytest.importorskip("transformers", reason="the live comparison needs pip install .[conformance]")

import transformers

from dsjax.released import hf
from dsjax.released.attributes import DEFAULTS, FIXED
from tests.conformance import compare, peer, sweep

SEEDS = {name: seed for seed, name in enumerate(sweep.CONFIGS)}
pytestmark = pytest.mark.filterwarnings("ignore")  # torch's and transformers' own


def source(name, folder):
    config = sweep.CONFIGS[name]
    return sweep.checkpoint(folder / name, config, sweep.weights(config, SEEDS[name]))


@pytest.mark.slow
@pytest.mark.parametrize("name", sweep.CONFIGS)
def test_a_released_checkpoint_is_the_same_function_in_both(name, tmp_path):
    path = source(name, tmp_path)
    (cfg, p), (model, _) = compare.load(path), peer.load(path)
    tokens = sweep.tokens(SEEDS[name], cfg.vocab)
    compare.agree(compare.everything(p, cfg, tokens), peer.everything(model, tokens))
    assert compare.greedy(p, cfg, tokens[0]) == peer.greedy(model, tokens[0])


@pytest.mark.parametrize("name", ["v3_yarn_mscale", "v3_mtp", "v2_lite"])
def test_a_checkpoint_of_dsjax_loads_with_every_key_and_gives_the_same_logits(name, tmp_path):
    cfg, p = compare.load(source(name, tmp_path))
    hf.save(tmp_path / "ours", cfg, p)
    model, info = peer.load(tmp_path / "ours")
    assert not info["missing_keys"]
    assert not info["mismatched_keys"]
    # transformers knows MTP modules by the released model's layer 61 alone; see the test below.
    extra = [k for k in info["unexpected_keys"] if not k.startswith(f"model.layers.{cfg.layers}.")]
    assert not extra
    tokens = sweep.tokens(SEEDS[name], cfg.vocab)
    theirs, ours = peer.logits(model, tokens), compare.logits(p, cfg, tokens)
    assert np.abs(theirs - ours).max() <= 1e-4


def test_a_checkpoint_of_transformers_loads_and_gives_the_same_logits(tmp_path):
    model, _ = peer.load(source("v3", tmp_path))
    model.save_pretrained(tmp_path / "theirs")  # counts an MTP module and writes none
    config = json.loads((tmp_path / "theirs" / "config.json").read_text())
    assert "rope_parameters" in config
    cfg, p = compare.load(tmp_path / "theirs")
    tokens = sweep.tokens(0, cfg.vocab)
    assert np.abs(peer.logits(model, tokens) - compare.logits(p, cfg, tokens)).max() <= 1e-4


@pytest.mark.slow
def test_speculation_by_mtp_agrees_with_that_of_transformers_at_the_released_depth(tmp_path):
    """61 layers, so that transformers finds the module by itself; no key is unexpected."""
    config = sweep.CONFIGS["v3_mtp"] | {
        "num_hidden_layers": 61, "hidden_size": 20, "intermediate_size": 12, "vocab_size": 41,
        "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 2, "topk_group": 1,
        "moe_intermediate_size": 8, "first_k_dense_replace": 3,
    }
    path = sweep.checkpoint(tmp_path / "deep", config, sweep.weights(config, 5))
    cfg, p = compare.load(path)
    hf.save(tmp_path / "ours", cfg, p)
    model, info = peer.load(tmp_path / "ours")
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    prompt = sweep.tokens(5, cfg.vocab)[0]
    plain = peer.greedy(model, prompt)
    assert peer.greedy(model, prompt, use_mtp=True) == plain
    assert compare.greedy(p, cfg, prompt, draft=True) == plain


def test_without_mtp_modules_the_rest_is_the_same(tmp_path):
    path = source("v3_mtp", tmp_path)
    cfg, p = hf.load(path, mtp=False)
    whole, q = compare.load(path)
    assert dataclasses.replace(whole, mtp_depth=0) == cfg
    assert p.mtp is None
    np.testing.assert_array_equal(p.embed, q.embed)


BLOCKS = sweep.V3 | {
    "hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 2,
    "num_key_value_heads": 2, "kv_lora_rank": 64, "qk_rope_head_dim": 64, "qk_nope_head_dim": 64,
    "v_head_dim": 64, "q_lora_rank": 128, "n_routed_experts": 4, "num_experts_per_tok": 2,
    "n_group": 2, "topk_group": 1, "moe_intermediate_size": 128, "num_hidden_layers": 2,
}


@pytest.mark.parametrize("form", [True, "ue8m0"])
def test_an_fp8_checkpoint_of_dsjax_is_the_same_function_in_transformers(form, tmp_path):
    """Sizes are multiples of 128: transformers divides a matrix into equal blocks.

    576 rows (the released kv_a_proj_with_mqa) it refuses to dequantize, 192 it takes for two blocks
    of 96, where the released code, vLLM and SGLang have 128 and 64.
    """
    pytest.importorskip("accelerate", reason="transformers wants it for FP8")
    cfg, p = compare.load(sweep.checkpoint(tmp_path / "v3", BLOCKS, sweep.weights(BLOCKS, 9)))
    hf.save(tmp_path / "ours", cfg, p, fp8=form)
    model, info = peer.load(tmp_path / "ours")
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    tokens = sweep.tokens(9, cfg.vocab)
    _, kept = hf.load(tmp_path / "ours", dtype="fp8")
    model.float()  # it dequantizes to float32, but leaves the rest in bfloat16
    wide = compare.load(tmp_path / "ours")[1]
    theirs = peer.logits(model, tokens)
    assert np.abs(theirs - compare.logits(wide, cfg, tokens)).max() <= 1e-4
    assert np.abs(theirs - compare.logits(kept, cfg, tokens)).max() <= 1e-4
    assert np.abs(theirs - compare.logits(p, cfg, tokens)).max() > 1e-2  # it did lose precision


@pytest.mark.parametrize("family", ["v2", "v3"])
def test_a_missing_attribute_has_the_default_of_the_installed_class(family):
    kind = {"v2": transformers.DeepseekV2Config, "v3": transformers.DeepseekV3Config}[family]
    theirs = kind()
    for name, value in DEFAULTS[family].items():
        if name == "rope_theta":
            assert theirs.rope_parameters["rope_theta"] == value
        elif hasattr(theirs, name):
            assert getattr(theirs, name) == value, name
    checked = {n for n in DEFAULTS[family] if hasattr(theirs, n)}
    assert {"routed_scaling_factor", "n_shared_experts", "first_k_dense_replace"} <= checked
    assert family == "v2" or {"n_group", "topk_group", "num_nextn_predict_layers"} <= checked
    for name, value in FIXED.items():
        assert getattr(theirs, name, value) == value, name
