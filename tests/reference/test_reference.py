"""The oracle itself is right: published constants, two forms that agree, derived values, exact
derivatives, and the properties (causality, separate segments, invariance) that the reports imply.
"""

import math
from dataclasses import replace

import numpy as np
import pytest

from . import attention, losses, model, moe, optim, sample, speculative, trees
from .sample import TINY

YARN = {
    "factor": 40,
    "original_length": 4096,
    "beta_fast": 32,
    "beta_slow": 1,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
}
DIM, VOCABULARY = 10, 11


@pytest.fixture
def rng():
    return np.random.default_rng(7)


def tiny_model(rng, cfg=TINY):
    return sample.model_params(rng, cfg, VOCABULARY, DIM, dense=1, moe=1, hidden=5)


def tiny_batch(rng):
    """Two rows of 8 + 1: two segments with padding at the end, and one whole segment."""
    tokens = rng.integers(0, VOCABULARY, (2, 9))
    segments = np.array([[1, 1, 1, 1, 2, 2, 2, 0, 0], [1] * 9])
    return tokens, segments, rng.uniform(0.5, 1.5, (2, 9))


# Rotary embedding and YaRN


def test_yarn_constants_are_those_of_the_released_models():
    assert attention.yarn_mscale(40, 1.0) == pytest.approx(1.3688879, abs=5e-8)
    assert attention.softmax_scale(192, YARN) == pytest.approx(0.1352338, abs=5e-8)
    lite = YARN | {"mscale": 0.707, "mscale_all_dim": 0.707}
    assert attention.softmax_scale(192, lite) == pytest.approx(0.1147214, abs=5e-8)
    assert attention.softmax_scale(192, None) == pytest.approx(0.0721688, abs=5e-8)
    assert attention.yarn_range(64, 1e4, YARN) == (10, 23)
    assert attention.rotary_magnitude(YARN) == 1.0


def test_yarn_keeps_fast_pairs_and_slows_slow_pairs_forty_times():
    plain = attention.rope_frequencies(64, 1e4, None)
    ratio = attention.rope_frequencies(64, 1e4, YARN) / plain
    assert np.all(ratio[:11] == 1.0)
    np.testing.assert_allclose(ratio[23:], 1 / 40, rtol=1e-15)
    np.testing.assert_allclose(ratio[12], 1 - 2 / 13 * (1 - 1 / 40), rtol=1e-15)


def test_rope_is_multiplication_of_adjacent_pairs_by_a_unit_complex_number(rng):
    x = rng.standard_normal(6)
    turned = (x[0::2] + 1j * x[1::2]) * np.exp(1j * 5 * attention.rope_frequencies(6, 1e4, None))
    y = attention.rope(x, 5, TINY)
    np.testing.assert_allclose(y[0::2] + 1j * y[1::2], turned, rtol=1e-14)


# Attention


@pytest.mark.parametrize("q_rank", [None, 6])
@pytest.mark.parametrize("yarn", [None, YARN])
def test_absorbed_attention_equals_expanded_attention(rng, q_rank, yarn):
    cfg = replace(TINY, q_rank=q_rank, yarn=yarn)
    p = sample.mla_params(rng, cfg, DIM)
    x, segments = rng.standard_normal((7, DIM)), np.array([1, 1, 1, 2, 2, 2, 0])
    expanded = attention.mla(p, x, segments, np.arange(7), cfg)
    absorbed = attention.mla_absorbed(p, x, segments, np.arange(7), cfg)
    np.testing.assert_allclose(absorbed, expanded, rtol=0, atol=1e-12)
    assert np.all(expanded[6] == 0)
    assert np.all(np.abs(expanded[:6]).max(1) > 0.01)


def test_grouped_attention_equals_masked_matrix_attention(rng):
    cfg = replace(TINY, heads=4, nope=6)
    p = sample.gqa_params(rng, cfg, DIM, kv_heads=2)
    x, positions = rng.standard_normal((5, DIM)), np.arange(5)

    def rotated(w):
        heads = np.einsum("td,dhn->htn", x, w)
        pairs = heads[..., 0::2] + 1j * heads[..., 1::2]
        angle = np.outer(positions, attention.rope_frequencies(6, cfg.theta, None))
        pairs = pairs * np.exp(1j * angle)
        return np.stack([pairs.real, pairs.imag], -1).reshape(heads.shape)

    k = np.repeat(rotated(p["w_k"]), 2, axis=0)
    v = np.repeat(np.einsum("td,dgn->gtn", x, p["w_v"]), 2, axis=0)
    scores = np.einsum("htn,hsn->hts", rotated(p["w_q"]), k) / np.sqrt(6)
    weights = np.exp(np.where(np.tri(5, dtype=bool), scores, -np.inf))
    weights /= weights.sum(-1, keepdims=True)
    expected = np.einsum("hts,hsn,hnd->td", weights, v, p["w_o"])
    y = attention.gqa(p, x, np.ones(5, int), positions, cfg)
    np.testing.assert_allclose(y, expected, atol=1e-13)


def test_epsilon_is_added_to_the_mean_square_under_the_root():
    x = np.array([3.0, -1.0])  # mean square 5
    np.testing.assert_allclose(attention.rms_norm(x, np.array([2.0, 6.0]), 4.0), [2.0, -2.0])


def test_norms_remove_the_scale_of_activations_and_of_the_latents(rng):
    cfg = replace(TINY, latent_eps=0.0)
    p, x = sample.mla_params(rng, cfg, DIM), rng.standard_normal((5, DIM))
    weight = rng.standard_normal(DIM)
    np.testing.assert_allclose(
        attention.rms_norm(3 * x, weight, 0.0), attention.rms_norm(x, weight, 0.0), rtol=1e-14
    )
    latent_columns = np.array([3.0] * cfg.kv_rank + [1.0] * cfg.rope)
    scaled = p | {"w_dkv": p["w_dkv"] * latent_columns, "w_dq": 0.5 * p["w_dq"]}
    same, shared_key = np.ones(5, int), p | {"w_dkv": 3 * p["w_dkv"]}
    y = attention.mla(p, x, same, np.arange(5), cfg)
    np.testing.assert_allclose(attention.mla(scaled, x, same, np.arange(5), cfg), y, atol=1e-13)
    assert np.abs(attention.mla(shared_key, x, same, np.arange(5), cfg) - y).max() > 1e-3


# The whole model


def test_no_output_depends_on_a_later_token(rng):
    params, tokens = tiny_model(rng), rng.integers(0, VOCABULARY, 8)
    segments, changed = np.ones(8, int), tokens.copy()
    changed[5] = (changed[5] + 1) % VOCABULARY
    before = model.sequence(params, tokens, segments, TINY)
    after = model.sequence(params, changed, segments, TINY)
    for k, (a, b) in enumerate(
        zip([before.logits, *before.mtp_logits], [after.logits, *after.mtp_logits])
    ):
        assert a.shape == (8 - k, VOCABULARY)
        np.testing.assert_array_equal(a[: 5 - k], b[: 5 - k])
        assert np.abs(a[5 - k] - b[5 - k]).max() > 1e-4  # position i reads tokens up to i+k


def test_first_half_of_the_projection_takes_the_embedding(rng):
    cfg = replace(TINY, mtp_depth=1)
    params, tokens = tiny_model(rng, cfg), np.array([1, 2, 3, 1, 2, 3])
    params["mtp"][0]["w_proj"][DIM:] = 0
    moved = params | {"norm": -params["norm"]}
    segments = np.ones(6, int)
    a, b = (model.sequence(q, tokens, segments, cfg).mtp_hidden[0] for q in (params, moved))
    np.testing.assert_array_equal(a, b)


def test_packing_and_padding_change_no_loss(rng):
    params = tiny_model(rng)
    tokens, _, weights = tiny_batch(rng)
    first, second = slice(0, 4), slice(4, 9)
    packed = losses.training_loss(
        params, tokens[:1], np.array([[1] * 4 + [2] * 5]), weights[:1], TINY
    )
    alone = [
        losses.training_loss(
            params, tokens[:1, s], np.ones_like(tokens[:1, s]), weights[:1, s], TINY
        )
        for s in (first, second)
    ]
    main = sum(part.main * part.weight_total for part in alone)
    assert packed.weight_total == pytest.approx(sum(part.weight_total for part in alone))
    assert packed.main * packed.weight_total == pytest.approx(main, rel=1e-12)
    for k in range(2):
        separate = sum(part.mtp[k] * part.weight_total for part in alone)
        assert packed.mtp[k] * packed.weight_total == pytest.approx(separate, rel=1e-12)
    pad = losses.training_loss(
        params, tokens[:1], np.array([[1] * 4 + [0] * 5]), weights[:1], TINY, 0.3, 0.1
    )
    bare = losses.training_loss(
        params, tokens[:1, :5], np.array([[1] * 4 + [0]]), weights[:1, :5], TINY, 0.3, 0.1
    )
    assert pad.total == pytest.approx(bare.total, rel=1e-12)


def test_positions_matter_only_by_their_differences(rng):
    params, tokens = tiny_model(rng), rng.integers(0, VOCABULARY, 6)
    ones, positions = np.ones(6, int), np.arange(6)
    plain = model.sequence(params, tokens, ones, TINY, positions)
    shifted = model.sequence(params, tokens, ones, TINY, positions + 1000)
    spread = model.sequence(params, tokens, ones, TINY, 2 * positions)
    np.testing.assert_allclose(shifted.logits, plain.logits, atol=1e-10)
    assert np.abs(spread.logits - plain.logits).max() > 1e-4


def test_a_head_of_zeros_gives_log_vocabulary_and_the_report_denominator(rng):
    params = tiny_model(rng) | {"head": np.zeros((DIM, VOCABULARY))}
    tokens, segments, _ = tiny_batch(rng)
    result = losses.training_loss(params, tokens, segments, np.ones((2, 9)), TINY, 0.3)
    log_v = math.log(VOCABULARY)
    assert result.weight_total == 3 + 2 + 8
    assert result.main == pytest.approx(log_v)
    assert result.mtp == pytest.approx([log_v * (2 + 1 + 7) / 13, log_v * (1 + 0 + 6) / 13])
    assert result.total == pytest.approx(result.main + 0.15 * sum(result.mtp))


# Derivatives


def test_complex_step_equals_central_differences(rng):
    params, batch = tiny_model(rng), tiny_batch(rng)
    direction = trees.random_direction(params, rng)

    def loss(p):
        return losses.training_loss(p, *batch, TINY, mtp_weight=0.3, balance_alpha=0.1).total

    exact = trees.directional_gradient(loss, params, direction)
    # Five-point rule: truncation h^4 = 1e-16 times a fifth derivative, rounding 1e-16 / h = 1e-12;
    # the fifth derivative along a direction of norm sqrt(parameters) is large, hence 1e-8.
    h = 1e-4

    def at(steps):
        return loss(trees.tree_map(lambda p, d: p + steps * h * d, params, direction))

    numeric = (8 * (at(1) - at(-1)) - (at(2) - at(-2))) / (12 * h)
    assert exact == pytest.approx(numeric, rel=1e-8)
    assert abs(exact) > 1e-2


def test_the_routing_bias_has_no_gradient_and_full_gradient_contracts_to_directional(rng):
    p = sample.moe_params(rng, TINY, DIM, 5)
    x, cotangent = rng.standard_normal((2, 3, DIM))

    def f(q):
        return np.sum(moe.moe(q, x, TINY)[0] * cotangent)

    gradient, direction = trees.full_gradient(f, p), trees.random_direction(p, rng)
    assert np.all(gradient["router"]["bias"] == 0)
    assert np.any(gradient["router"]["centroids"] != 0)
    exact = trees.directional_gradient(f, p, direction)
    assert trees.inner(gradient, direction) == pytest.approx(exact, rel=1e-12)


# Optimizer and speculative sampling


def test_first_adamw_step_has_the_size_of_the_rate_and_decays_only_matrices():
    params = {"w": np.array([[2.0, -4.0]]), "norm": np.array([1.0])}
    gradients = {"w": np.array([[3.0, -0.1]]), "norm": np.array([4.0])}
    new, state = optim.adamw_step(params, gradients, optim.adamw_init(params), 0.01, eps=0.0)
    np.testing.assert_allclose(new["w"], [[2 - 0.01 * 1.2, -4 + 0.01 * 1.4]], rtol=1e-14)
    np.testing.assert_allclose(new["norm"], [0.99], rtol=1e-14)
    norm = math.sqrt(25.01)
    np.testing.assert_allclose(state.first["w"], [[0.3 / norm, -0.01 / norm]], rtol=1e-14)
    second, _ = optim.adamw_step(new, trees.zeros_like(new), state, 0.01, eps=0.0)
    # m = .09 g, v = .0475 g^2, corrected by 1 - .81 and 1 - .9025
    step = (0.09 / 0.19) / math.sqrt(0.0475 / 0.0975)
    np.testing.assert_allclose(second["norm"], [0.99 - 0.01 * step], rtol=1e-14)


def test_clipping_leaves_small_gradients_alone():
    small = {"a": np.array([0.3]), "b": [np.array([0.4])]}
    assert optim.clipped(small, 1.0) == small
    assert optim.global_norm(optim.clipped(small, 0.1)) == pytest.approx(0.1)


def test_speculative_sampling_emits_the_target_distribution(rng):
    for _ in range(20):
        target, draft = rng.dirichlet(np.full(5, 0.5), size=2)
        np.testing.assert_allclose(
            speculative.emitted_distribution(target, draft), target, atol=1e-15
        )
    np.testing.assert_array_equal(speculative.emitted_distribution(target, target), target)


def test_verification_stops_at_the_first_rejection():
    targets = np.array([[0.5, 0.5, 0.0], [0.1, 0.3, 0.6], [0.2, 0.2, 0.6]])
    drafts = np.array([[0.25, 0.75, 0.0], [0.4, 0.6, 0.0]])
    count, law = speculative.verify(targets, drafts, [0, 1], [0.99, 0.49])
    assert count == 2
    np.testing.assert_array_equal(law, targets[2])
    count, law = speculative.verify(targets, drafts, [0, 1], [0.99, 0.51])
    assert count == 1
    np.testing.assert_array_equal(law, [0, 0, 1])
    assert speculative.verify(targets, drafts, [1, 1], [0.7, 0.0])[0] == 0
