"""The main model is the reference's; scanned, unrolled and looped layers are one function; decoding
against the cache gives what whole rows give; nothing reads the future.
"""

import dataclasses
import operator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsjax.layers.backend import single
from dsjax.model import block as blocks
from dsjax.model import transformer
from dsjax.numerics.precision import BF16
from dsjax.ops import rope
from tests import agreement
from tests.agreement import (
    TINY,
    V2_MOE,
    YARN,
    as_reference,
    batch_arrays,
    close,
    compiled,
    double,
    draw,
    pulled,
    reference_config,
    shapes_within,
)
from tests.reference import model

PLAIN = dataclasses.replace(TINY, mtp_depth=0)
MODELS = {
    "V3": PLAIN,
    "V2, YaRN, no dense layer": dataclasses.replace(
        PLAIN, moe=V2_MOE, attention=agreement.MLA_DIRECT, rope=YARN, layers=2, dense_layers=0),
    "grouped attention": dataclasses.replace(PLAIN, attention=agreement.GQA, layers=2),
    "dense, standard attention": dataclasses.replace(
        PLAIN, attention=agreement.MHA, moe=None, layers=2, dense_layers=2),
}


def rows(length=9):
    tokens, segments, _ = batch_arrays(2, length - 1, TINY.vocab, 1)
    return tokens, segments


@pytest.mark.parametrize("name", list(MODELS))
def test_logits_agree_with_the_reference_at_every_real_token(name):
    cfg = MODELS[name]
    tokens, segments = rows()
    with jax.enable_x64(True):
        p = draw(transformer.specs(cfg), 0)
        y = compiled(lambda p: transformer.logits(p, tokens, cfg, segments, double()))(p)
    outputs = model.forward(as_reference(p), tokens, segments, reference_config(cfg))
    expected = np.stack([output.logits for output in outputs])
    close(np.asarray(y)[segments != 0], expected[segments != 0], 1e-12)


def looped(p, tokens, segments, cfg, backend):
    """The same layers in a Python loop: hidden states and loads by layer."""
    x = transformer.embed(p, tokens, backend)
    angles = rope.angles(cfg.rope, blocks.rope_dim(cfg), jnp.arange(tokens.shape[1]))
    attend, loads = blocks.prefill(angles, segments, cfg, backend), []
    for n in range(cfg.layers):
        stack, at = cfg.stack_of(n)
        layer = jax.tree.map(operator.itemgetter(at), p.stacks[stack.name])
        x, stats, _ = blocks.block(layer, x, attend, segments != 0, cfg, backend)
        loads += [] if stats is None else [stats.loads]
    return transformer.rms_norm(x, p.norm, cfg.norm_eps), jnp.stack(loads)


def test_scanned_and_unrolled_layers_are_the_loop_with_its_gradient():
    tokens, segments = map(jnp.asarray, rows())
    cfg = dataclasses.replace(PLAIN, layers=2, dense_layers=0)
    cotangent = np.random.default_rng(2).standard_normal((*tokens.shape, TINY.d_model))

    def scanned(unroll):
        def f(p):
            backend = dataclasses.replace(double(), unroll=unroll)
            out = transformer.hidden(p, tokens, segments, cfg, backend)
            return out.x, out.stats.loads
        return f

    with jax.enable_x64(True):
        p = draw(transformer.specs(cfg), 0)
        pull = (cotangent, np.zeros((2, 2, TINY.moe.experts)))
        expected = pulled(lambda p: looped(p, tokens, segments, cfg, double()), pull, p)
        actual = pulled(scanned(1), pull, p)
        jax.tree.map(lambda a, b: close(a, b, 1e-12), actual, expected)
        unrolled = compiled(scanned(8))(p)
        jax.tree.map(lambda a, b: close(a, b, 1e-12), unrolled, expected[0])


@pytest.mark.parametrize("name", ["V3", "dense, standard attention"])
def test_decoding_against_the_cache_gives_what_whole_rows_give(name):
    cfg = MODELS[name]
    tokens = jnp.asarray(rows()[0])

    def f(p):
        whole = transformer.hidden(p, tokens, jnp.ones_like(tokens), cfg, double(),
                                   is_kept=True)
        cache = transformer.empty_cache(cfg, 2, 12, double())
        steps = []
        for start, end in [(0, 5), (5, 6), (6, 9)]:
            positions = jnp.tile(jnp.arange(start, end)[None], (2, 1))
            x, cache = transformer.hidden_cached(p, tokens[:, start:end], positions, cache, cfg,
                                                 double())
            steps.append(x)
        kept = transformer.make_cache(whole, 12, double())
        return whole.x, jnp.concatenate(steps, 1), kept, cache

    with jax.enable_x64(True):
        whole, steps, kept, cache = compiled(f)(draw(transformer.specs(cfg), 0))
    close(steps, whole, 1e-12)
    assert {a.shape[2] for a in jax.tree.leaves(cache)} == {12}
    jax.tree.map(lambda a, b: close(a, b, 1e-12), cache, kept)


def test_a_token_reads_itself_and_the_past_of_its_document_alone():
    tokens = jnp.array([[3, 1, 4, 0, 5, 9, 2, 6]])  # all different: a row of the embedding each
    segments = jnp.array([[1, 1, 1, 2, 2, 2, 2, 0]])
    cfg = dataclasses.replace(PLAIN, layers=2)  # a dense one and a mixture

    def f(p, t):
        x = transformer.hidden(p, tokens, segments, cfg, double()).x
        return (x[0, t] * jnp.arange(1.0, TINY.d_model + 1)).sum()

    with jax.enable_x64(True):
        p = draw(transformer.specs(cfg), 3)
        gradient = compiled(jax.grad(f))
        for t in range(8):
            rows_read = np.any(np.asarray(gradient(p, t).embed) != 0, axis=1)
            start = (0, 0, 0, 3, 3, 3, 3, 7)[t]
            assert set(np.flatnonzero(rows_read)) == set(tokens[0, start : t + 1].tolist())


@pytest.mark.parametrize("name", [
    "V3", pytest.param("dense, standard attention", marks=pytest.mark.exhaustive)])
def test_bfloat16_activations_stay_bfloat16_through_whole_rows_and_decoding(name):
    cfg = MODELS[name]
    tokens = jnp.asarray(rows()[0])
    backend = single(BF16, jnp.bfloat16)

    def f(p):
        whole = transformer.hidden(p, tokens, jnp.ones_like(tokens), cfg, backend).x
        positions = jnp.tile(jnp.arange(9)[None], (2, 1))
        cache = transformer.empty_cache(cfg, 2, 9, backend)
        return whole, transformer.hidden_cached(p, tokens, positions, cache, cfg, backend)

    whole, (decoded, cache) = compiled(f)(draw(transformer.specs(cfg), 0))
    dtypes = {a.dtype for a in (whole, decoded, *jax.tree.leaves(cache))}
    assert dtypes == {jnp.dtype(jnp.bfloat16)}
    error = np.asarray(decoded, np.float32) - np.asarray(whole, np.float32)
    # A layer rounds a dozen times by 2^-9 of size 1; two to three layers that amplify little. The
    # median is free of the few tokens whose experts a rounding may exchange.
    assert np.median(np.abs(error)) < 3 * 12 * 2**-9


def test_a_long_row_makes_no_array_of_time_by_time_anywhere_in_the_model():
    cfg = dataclasses.replace(PLAIN, layers=2)
    length = 1031  # above eight blocks of 128, and prime
    tokens = jnp.zeros((1, length), jnp.int32)
    p = jax.eval_shape(lambda: draw(transformer.specs(cfg), 0))

    def f(p):
        return transformer.hidden(p, tokens, tokens + 1, cfg, single()).x.sum()

    shapes = {s for s, _ in shapes_within(jax.make_jaxpr(jax.grad(f))(p).jaxpr)}
    assert (1, 3, 128, 128) in shapes  # the walk sees inside layers and blocks
    assert not [s for s in shapes if sum(n >= length for n in s) > 1]
