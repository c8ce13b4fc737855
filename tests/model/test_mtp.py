"""Prediction modules are the reference's at depths 1 to 3, and draft against their own cache what
they give over whole rows.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from dsjax.layers.backend import single
from dsjax.model import mtp, transformer
from tests.agreement import (
    TINY,
    as_reference,
    batch_arrays,
    close,
    compiled,
    double,
    draw,
    reference_config,
)
from tests.reference import model

DEEP = dataclasses.replace(TINY, layers=1, dense_layers=1, mtp_depth=3)
D = TINY.d_model


def whole_rows(p, tokens, segments):
    """Hidden states and loads of each depth; the inputs of depth k end k tokens early."""
    backend = double()
    embed = functools.partial(transformer.embed, p, backend=backend)
    main = transformer.hidden(p, tokens, segments, DEEP, backend).x
    chain = mtp.chain(p.mtp, main, tokens, segments, embed, DEEP, backend)
    return [(made.x[:, : tokens.shape[1] - k], made.stats.loads) for k, made in enumerate(chain, 1)]


def test_hidden_states_of_three_depths_agree_with_the_reference():
    tokens, segments, _ = batch_arrays(2, 8, TINY.vocab, 1)
    with jax.enable_x64(True):
        p = draw(transformer.specs(DEEP), 0)
        results = compiled(whole_rows)(p, tokens, segments)
        results = jax.tree.map(np.asarray, results)
    outputs = model.forward(as_reference(p), tokens, segments, reference_config(DEEP))
    for k, (hidden, loads) in enumerate(results, start=1):
        for b in range(2):
            routing = outputs[b].mtp_routings[k - 1]
            expected = outputs[b].mtp_hidden[k - 1]
            close(hidden[b][routing.is_real], expected[routing.is_real], 1e-12)
            assert loads[b].sum() == 2 * routing.is_real.sum()


def test_the_embedding_is_the_first_half_of_the_joined_input():
    rng = np.random.default_rng(0)
    previous, embedded = (jnp.asarray(a, jnp.float32) for a in rng.standard_normal((2, 1, 3, D)))
    backend = single()
    p = mtp.module(draw(transformer.specs(DEEP).mtp, 1, jnp.float32), 0)
    no_hidden = p.replace(w_proj=p.w_proj.at[D:].set(0))
    no_embedding = p.replace(w_proj=p.w_proj.at[:D].set(0))
    join = compiled(lambda p, previous, embedded: mtp.join(p, previous, embedded, DEEP, backend))
    np.testing.assert_array_equal(join(no_hidden, previous, embedded),
                                  join(no_hidden, -previous, embedded))
    np.testing.assert_array_equal(join(no_embedding, previous, embedded),
                                  join(no_embedding, previous, -embedded))
    assert np.any(join(p, previous, embedded) != join(p, -previous, embedded))


def test_drafting_against_the_cache_gives_what_whole_rows_give():
    rng = np.random.default_rng(2)
    previous, embedded = rng.standard_normal((2, 2, 7, D))

    def f(p, previous, embedded):
        one = mtp.module(p, 1)
        ones = jnp.ones((2, 7), jnp.int32)
        whole = mtp.hidden(one, previous, embedded, ones, ones != 0, DEEP, double())
        cache = mtp.blocks.empty_cache(DEEP, 2, 9, double())
        steps = []
        for start, end in [(0, 4), (4, 5), (5, 7)]:
            positions = jnp.tile(jnp.arange(start, end)[None], (2, 1))
            x, cache = mtp.hidden_cached(one, previous[:, start:end], embedded[:, start:end],
                                         positions, cache, DEEP, double())
            steps.append(x)
        return whole.x, jnp.concatenate(steps, 1), whole.kept, cache

    with jax.enable_x64(True):
        p = draw(transformer.specs(DEEP).mtp, 3)
        whole, steps, kept, cache = compiled(f)(p, previous, embedded)
    close(steps, whole, 1e-12)
    jax.tree.map(lambda a, b: close(np.asarray(a)[:, :7], b, 1e-12), cache.kept, kept)
