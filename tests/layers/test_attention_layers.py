"""Latent, grouped and standard attention are the reference's, with every gradient; decoding against
a cache gives what whole rows give, and the latent cache holds what the report says.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsjax.layers import gqa, mla
from dsjax.layers.backend import single
from dsjax.layers.cache import contiguous
from dsjax.numerics.precision import BF16
from dsjax.ops import rope
from dsjax.params import paths
from tests import agreement
from tests.agreement import (
    TINY,
    YARN,
    as_reference,
    close,
    compiled,
    draw,
    gradients_close,
    pulled,
    reference_config,
)
from tests.reference import attention

D = TINY.d_model
FORMS = {
    "latent": (agreement.MLA, TINY.rope),
    "latent, direct queries, YaRN": (agreement.MLA_DIRECT, YARN),
    "grouped, YaRN": (agreement.GQA, YARN),
    "standard": (agreement.MHA, TINY.rope),
}


def model(name):
    form, rotary = FORMS[name]
    return dataclasses.replace(TINY, attention=form, rope=rotary)


def layer_of(cfg):
    """Specs, whole-row form, cached form, what is kept of no tokens, rotated channels."""
    if isinstance(cfg.attention, agreement.MLAConfig):
        specs = mla.mla_specs(D, cfg.attention)
        return specs, mla.mla, mla.mla_absorbed, mla.none_kept, cfg.attention.rope_dim
    specs = gqa.gqa_specs(D, cfg.attention)
    return specs, gqa.gqa, gqa.gqa_cached, gqa.none_kept, cfg.attention.head_dim


def rows(seed, length=7):
    x, cotangent = np.random.default_rng(seed).standard_normal((2, 2, length, D))
    return x, cotangent


@pytest.mark.parametrize("name", list(FORMS))
def test_whole_rows_and_all_gradients_agree_with_the_reference(name):
    cfg = model(name)
    specs, whole, _, _, rotated = layer_of(cfg)
    x, cotangent = rows(0)
    segments = np.array([[1, 1, 1, 2, 2, 2, 2], [1, 1, 1, 1, 1, 0, 0]], np.int32)
    real = segments != 0
    cotangent = cotangent * real[..., None]
    with jax.enable_x64(True):
        p = draw(specs, 1)

        def f(p, x):
            angles = rope.angles(cfg.rope, rotated, jnp.arange(7))
            return whole(p, x, angles, jnp.asarray(segments), cfg, agreement.double())[0]

        y, (dp, dx) = pulled(f, cotangent, p, x)
    reference, sizes = as_reference(p), reference_config(cfg)

    def expected(q):
        pairs = zip(q["x"], segments)
        return np.stack([
            attention.attention(q["p"], one, s, np.arange(7), sizes) for one, s in pairs
        ])

    together = {"p": reference, "x": x}
    close(y[real], expected(together)[real])
    gradients_close({"p": as_reference(dp), "x": dx}, lambda q: np.sum(expected(q) * cotangent),
                    together)


@pytest.mark.parametrize("name", list(FORMS))
def test_decoding_in_uneven_steps_gives_what_whole_rows_give(name):
    cfg = model(name)
    specs, whole, cached, none, rotated = layer_of(cfg)
    x, _ = rows(2)
    lengths = np.array([7, 4])  # the second row's prompt is shorter; its tail is never read

    def f(p, x):
        backend = agreement.double()
        angles = rope.angles(cfg.rope, rotated, jnp.arange(7))
        y, past = whole(p, x, angles, jnp.ones((2, 7), jnp.int32), cfg, backend)
        cache = contiguous(none(cfg, 2, jnp.float64), 11)
        steps = []
        for start, end in [(0, 3), (3, 4), (4, 7)]:
            positions = jnp.tile(jnp.arange(start, end)[None], (2, 1))
            by = rope.angles(cfg.rope, rotated, positions)
            out, cache = cached(p, x[:, start:end], by, positions, cache, cfg, backend)
            steps.append(out)
        # The next token of each row lies at its own position.
        position = jnp.asarray(lengths - 1)[:, None]
        by = rope.angles(cfg.rope, rotated, position)
        last = jnp.take_along_axis(x, position[..., None], axis=1)
        again, _ = cached(p, last, by, position, cache, cfg, backend)
        return y, past, jnp.concatenate(steps, 1), cache, again

    with jax.enable_x64(True):
        results = compiled(f)(draw(specs, 3), x)
        y, past, stepwise, cache, again = jax.tree.map(np.asarray, results)
    close(stepwise, y, 1e-13)
    close(again[:, 0], y[np.arange(2), lengths - 1], 1e-13)
    for kept, made in zip(jax.tree.leaves(cache), jax.tree.leaves(past)):
        close(kept[:, :7], made, 1e-14)
        assert not np.any(kept[:, 7:])


@pytest.mark.parametrize("form", [agreement.MLA, agreement.MLA_DIRECT])
def test_cache_holds_the_normalized_latent_and_the_rotated_shared_key(form):
    cfg = dataclasses.replace(TINY, attention=form, rope=YARN)
    x, _ = rows(4)
    with jax.enable_x64(True):
        p = draw(mla.mla_specs(D, form), 5)
        angles = rope.angles(YARN, form.rope_dim, jnp.arange(7))
        past = compiled(lambda p, x: mla.latents(p, x, angles, cfg, agreement.double()))(p, x)
    reference, sizes = as_reference(p), reference_config(cfg)
    for b in range(2):
        latent, key = attention.mla_latent_and_key(reference, x[b], np.arange(7), sizes)
        close(past.latent[b], latent)
        close(past.k_rope[b], key)
    cached = contiguous(mla.none_kept(cfg, 1, jnp.bfloat16), 1)
    assert sum(a.size for a in jax.tree.leaves(cached)) == form.kv_rank + form.rope_dim


@pytest.mark.parametrize("name", list(FORMS))
def test_bfloat16_activations_decode_as_whole_rows_within_their_rounding(name):
    cfg = model(name)
    specs, whole, cached, none, rotated = layer_of(cfg)
    backend = single(BF16, jnp.bfloat16)
    x = jnp.asarray(rows(6)[0], jnp.bfloat16)

    def f(p, x):
        positions = jnp.tile(jnp.arange(7)[None], (2, 1))
        angles = rope.angles(cfg.rope, rotated, jnp.arange(7))
        y, _ = whole(p, x, angles, jnp.ones((2, 7), jnp.int32), cfg, backend)
        by = rope.angles(cfg.rope, rotated, positions)
        cache = contiguous(none(cfg, 2, jnp.bfloat16), 7)
        return y, cached(p, x, by, positions, cache, cfg, backend)

    y, (decoded, cache) = compiled(f)(draw(specs, 7), x)
    assert {a.dtype for a in (y, decoded, *jax.tree.leaves(cache))} == {jnp.dtype(jnp.bfloat16)}
    # About eight roundings of 2^-9 in series (projections, norm, scores, weights, output) that
    # differ between the forms: 8 * 2^-8 of the largest entry, in both directions.
    close(np.asarray(decoded, np.float32), np.asarray(y, np.float32), 2 * 8 * 2**-8)


def test_every_matrix_of_attention_may_be_held_low_and_norms_may_not():
    for cfg in map(model, FORMS):
        for path, spec in paths(layer_of(cfg)[0]):
            assert spec.is_product == path.startswith("w_")
            assert spec.is_decayed == path.startswith("w_")
