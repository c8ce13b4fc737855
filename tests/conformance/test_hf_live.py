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

from dsjax.checkpoint import hf
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
