"""Counts equal the published and the released models', to the last parameter, before any exists."""

import importlib

import pytest

from dsjax.model.count import count, training_flops

# facts: released checkpoints (main and MTP parameters), ISCA'25 paper tables 1 and 2
RELEASED = {
    "deepseek_v3": (671_026_419_200, 11_610_068_224, 37_552_297_472, 70_272),
    "deepseek_v2": (235_741_434_880, 0, 21_375_800_320, 69_120),
    "deepseek_v2_lite": (15_706_484_224, 0, 2_661_150_208, 31_104),
}


def model(name):
    return importlib.import_module(f"configs.{name}").config().model


@pytest.mark.parametrize("name", RELEASED)
def test_counts_are_the_released_models(name):
    sizes = count(model(name))
    found = (sizes.params_total, sizes.params_mtp, sizes.params_active, sizes.kv_bytes_per_token)
    assert found == RELEASED[name]


@pytest.mark.parametrize(("name", "gflop"), [("deepseek_v3", 250.46), ("deepseek_v2", 155.3)])
def test_training_flops_a_token_are_the_published_ones(name, gflop):
    assert count(model(name)).flops_per_token / 1e9 == pytest.approx(gflop, abs=0.05)


def test_parts_of_v3_are_those_of_the_checkpoint():
    parts = {p.name: p.params for p in count(model("deepseek_v3")).parts}
    assert parts["routed experts"] == 653_908_770_816
    assert parts["attention"] == 11_413_547_008
    assert parts["shared experts"] == 2_554_331_136
    assert parts["dense feed-forward"] == 1_189_085_184
    assert parts["embedding"] == parts["head"] == 926_679_040
    assert parts["router centroids"] == 106_430_464
    assert parts["router biases"] == 14_848


def test_the_two_benchmark_shapes_have_their_sizes():
    assert count(model("small")).params_total == 108_130_016
    assert count(model("tiny")).params_total == 8_223_792


def test_longer_rows_cost_only_attention():
    short, long = (count(model("tiny"), length) for length in (256, 512))
    a = model("tiny").attention
    extra = 6 * 4 * a.heads * (a.qk_dim + a.value_dim) * 128
    assert long.flops_per_token - short.flops_per_token == extra


def test_an_mtp_module_costs_a_layer_its_projection_and_the_head():
    cfg = model("tiny")
    extra = training_flops(cfg, 256) - count(cfg, 256).flops_per_token
    assert extra > 6 * cfg.d_model * cfg.vocab
    assert extra < count(cfg, 256).flops_per_token


@pytest.mark.parametrize("length", [1, 7, 256])
def test_training_flops_are_those_of_every_product_also_in_short_rows(length):
    """By hand, of tiny: 6 FLOPs for each number that a token meets but the look-up's, and 6 for
    each channel of score and value and half the row's keys; a module is a layer more."""
    d, vocab, heads, channels = 256, 4096, 4, 48 + 32
    norms = 128 + 64  # of the latents
    attention = d * 128 + 128 * 4 * 48 + d * 80 + 64 * 4 * 64 + 4 * 32 * d + norms
    mixture = 5 * 3 * d * 128 + d * 16 + 16  # four of 16 experts and the shared one, the router
    dense = 3 * d * 768
    layer = attention + 2 * d
    main = 4 * layer + dense + 3 * mixture + d + vocab * d
    module = layer + mixture + 3 * d + 2 * d * d + vocab * d
    keys = 5 * heads * channels * length / 2
    assert training_flops(model("tiny"), length) == 6 * (main + module + keys)
