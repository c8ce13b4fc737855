"""dsjax computes what transformers computed: logits, loss, gradients, greedy tokens, MTP.

The arrays were made by tests/golden/make_hf.py from the same random checkpoints. Both sides are
float32; they differ by the order of sums, at most 3e-5 of 7 in the logits when this was written.
"""

from pathlib import Path

import numpy as np
import pytest

from tests.conformance import compare, sweep
from tests.golden.make_hf import digest

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "hf_conformance.npz")
SEEDS = {name: seed for seed, name in enumerate(sweep.CONFIGS)}


def load(name, folder):
    config = sweep.CONFIGS[name]
    path = sweep.checkpoint(folder / name, config, sweep.weights(config, SEEDS[name]))
    return compare.load(path)


def cases():
    """One of each kind is run by `make test`, every variant of them by `make test-all`."""
    each = ("v3_mtp_twice", "v2_lite")
    marks = {name: () if name in each else (pytest.mark.exhaustive,) for name in sweep.CONFIGS}
    return [pytest.param(name, marks=marks[name]) for name in sweep.CONFIGS]


@pytest.mark.parametrize("name", cases())
def test_logits_loss_gradients_and_mtp_are_those_of_transformers(name, tmp_path):
    cfg, p = load(name, tmp_path)
    found = compare.everything(p, cfg, sweep.tokens(SEEDS[name], cfg.vocab))
    assert np.abs(found.logits - GOLDEN[f"{name}/logits"]).max() <= 1e-4
    assert abs(found.loss - GOLDEN[f"{name}/loss"]) <= 1e-5 * found.loss
    expected = GOLDEN[f"{name}/gradients"]
    assert len(found.gradients) == len(expected)
    for (tensor, gradient), kept in zip(sorted(found.gradients.items()), expected):
        # A projection on standard normals of an error e has the size of its norm.
        error = np.abs(digest(tensor, gradient) - kept).max()
        assert error <= 3 * compare.RTOL * kept[0], f"the gradient of {tensor}: {error / kept[0]}"
    assert len(found.mtp) == cfg.mtp_depth
    for depth, made in enumerate(found.mtp):
        assert np.abs(made - GOLDEN[f"{name}/mtp{depth}"]).max() <= 1e-4


@pytest.mark.exhaustive  # logits above are the same, and decoding below gives these tokens
@pytest.mark.parametrize("name", list(sweep.CONFIGS))
def test_64_greedy_tokens_are_those_of_transformers(name, tmp_path):
    cfg, p = load(name, tmp_path)
    prompt = sweep.tokens(SEEDS[name], cfg.vocab)[0]
    continued = GOLDEN[f"{name}/greedy"]
    # Each token is the best after all before it: the same as decoding, in one pass.
    logits = compare.logits(p, cfg, np.concatenate([prompt, continued])[None])[0]
    assert logits[prompt.size - 1 : -1].argmax(-1).tolist() == continued.tolist()
    assert len(continued) == compare.GREEDY


@pytest.mark.slow
@pytest.mark.parametrize(("name", "draft"), [
    ("v3_mtp_twice", True), pytest.param("v2_lite", False, marks=pytest.mark.exhaustive)])
def test_decoding_with_a_cache_gives_the_tokens_of_transformers(name, draft, tmp_path):
    cfg, p = load(name, tmp_path)
    prompt = sweep.tokens(SEEDS[name], cfg.vocab)[0]
    assert compare.greedy(p, cfg, prompt, draft) == GOLDEN[f"{name}/greedy"].tolist()
