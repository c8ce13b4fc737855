"""Layers one by one, over a cache of any size, give the resident model's numbers, to the bit.

The resident model has the same products (`models.apart`); where rows decode alone in float32 these
are its default ones.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsjax.infer import Options, Sampling, generate
from dsjax.infer.generate import ready
from dsjax.infer.offload.layers import Layers
from dsjax.model import transformer
from dsjax.numerics import gemm
from dsjax.numerics.precision import BF16, FP32
from tests.infer.offload import models
from tests.infer.offload.models import CFG, PARAMS

LENGTH = 40
TOKENS = np.random.default_rng(0).integers(0, CFG.vocab, (2, 24)).astype(np.int32)
SEGMENTS = np.ones_like(TOKENS)
SEGMENTS[1, 19:] = 0
NEWEST, AT = np.array([[3], [4]], np.int32), np.array([[24], [19]], np.int32)


@functools.cache
def resident(precision):
    """Hidden states of whole rows, and of a token after them."""
    _, backend = models.backends(precision)
    params, cfg = ready(PARAMS, CFG, backend)

    @jax.jit
    def read(p):
        main = transformer.hidden(p, TOKENS, SEGMENTS, cfg, backend, is_kept=True)
        return main.x, transformer.make_cache(main, LENGTH, backend)

    @jax.jit
    def step(p, cache):
        return transformer.hidden_cached(p, NEWEST, AT, cache, cfg, backend)[0]

    x, cache = read(params)
    return x, step(params, cache)


@pytest.mark.parametrize("experts", [
    3, *(pytest.param(n, marks=pytest.mark.exhaustive) for n in (7, 100))],
                         ids=["waves", "some", "all"])
@pytest.mark.parametrize("precision", [
    FP32, *(pytest.param(form, marks=pytest.mark.exhaustive) for form in (BF16, gemm.FP8))],
                         ids=lambda p: p.name)
def test_hidden_states_have_the_resident_models_bits(precision, experts):
    backend, _ = models.backends(precision)
    params, cache = models.trunk(backend), models.cache(experts, backend)
    layers = Layers(params, CFG, backend, cache)
    x, past = layers.read(transformer.embed(params, TOKENS, backend), jnp.asarray(SEGMENTS),
                          SEGMENTS != 0, LENGTH)
    y, _ = layers.step(transformer.embed(params, NEWEST, backend), jnp.asarray(AT), past)
    wanted = resident(precision)
    is_real = SEGMENTS != 0
    assert models.same_bits(np.asarray(x)[is_real], np.asarray(wanted[0])[is_real])
    assert models.same_bits(y, wanted[1])
    assert cache.counts.wanted > 0
    if experts == 100:
        assert cache.slots.count == 3 * models.MOE.experts


GREEDY = Sampling(temperature=0, max_new_tokens=12)
SAMPLED = Sampling(1.2, 0.9, max_new_tokens=15, seed=4)


@pytest.fixture(scope="module")
def offloaded():
    backend, _ = models.backends()
    cache = models.cache(8)
    return models.trunk(backend), Options(backend, experts=cache)


@pytest.mark.parametrize("sampling", [
    pytest.param(GREEDY, marks=pytest.mark.exhaustive), SAMPLED], ids=["greedy", "sampled"])
def test_a_text_is_the_one_of_plain_generate(sampling, offloaded):
    params, options = offloaded
    own, _ = models.backends()
    prompt = [[5, 6, 7, 8, 9, 10, 0, 1]]
    seen = []
    made = generate(params, CFG, prompt, sampling, options, lambda row, new: seen.extend(new))
    assert made.completions == generate(PARAMS, CFG, prompt, sampling, Options(own)).completions
    assert tuple(seen) == made.completions[0].tokens
    report = made.report
    assert report.new_tokens == len(seen)
    assert report.passes == len(seen) - 1
    used = report.decode_experts
    # two experts in each of three layers, a pass
    assert used.wanted == report.passes * 3 * models.MOE.experts_per_token
    assert 0 < used.hits < used.wanted
    assert used.expected == used.wanted
    assert used.right > 0


def test_rows_of_unequal_lengths_go_as_in_the_resident_model(offloaded):
    params, options = offloaded
    _, same = models.backends()
    prompts, asked = [[1, 2, 3], [4], [5, 6, 7, 8, 9]], [GREEDY, SAMPLED, GREEDY]
    made = generate(params, CFG, prompts, asked, options).completions
    assert made == generate(PARAMS, CFG, prompts, asked, Options(same)).completions


def test_drafting_is_refused(offloaded):
    params, options = offloaded
    asked = Options(options.backend, draft=True, experts=options.experts)
    with pytest.raises(ValueError, match="--draft"):
        generate(params, CFG, [[1]], GREEDY, asked)


def test_experts_of_padding_are_not_fetched():
    """A prompt of one token is padded to sixteen: one token's experts are wanted in each layer."""
    backend, _ = models.backends()
    cache = models.cache(8)
    report = generate(models.trunk(backend), CFG, [[1]], Sampling(temperature=0, max_new_tokens=1),
                      Options(backend, experts=cache)).report
    assert report.prefill_experts.wanted == 3 * models.MOE.experts_per_token
