"""Pages anywhere hold what a row's positions hold, and attention reads them where they lie."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsjax.config.model import MLAConfig
from dsjax.layers import mla, paged
from dsjax.layers.mla import Latents
from dsjax.ops.attention_cached import attend_blocks, attend_cached
from tests import agreement

SIZE, BLOCK = 4, 16


def arrays(seed, *shapes):
    draw = np.random.default_rng(seed)
    return [draw.normal(size=shape).astype(np.float32) for shape in shapes]


@pytest.mark.parametrize("shared", [1, 2])
def test_blocks_are_the_whole_softmax(shared):
    """And a block beyond a row's position leaves its bits."""
    q, r, k, s, v = arrays(0, (3, 2, 4, 6), (3, 2, 4, 2), (3, 64, shared, 6), (3, 64, shared, 2),
                           (3, 64, shared, 5))
    positions = jnp.asarray([[0, 1], [17, 18], [62, 63]], jnp.int32)

    def past(j):
        def cut(a):
            return jax.lax.dynamic_slice_in_dim(a, j * BLOCK, BLOCK, axis=1)
        return (cut(k), cut(s)), cut(v)

    @jax.jit
    def by_blocks(positions):
        return attend_blocks((q, r), past, positions, 0.3, BLOCK)

    together = by_blocks(positions)
    whole = attend_cached((q, r), (k, s), v, positions, 0.3)
    agreement.close(together, whole, 1e-6)
    short = by_blocks(jnp.minimum(positions, 18))
    np.testing.assert_array_equal(short[:2], together[:2])


def written(form, seed=1):
    """Two rows of nine positions each, in pages in any order."""
    latent, key = arrays(seed, (2, 9, 130), (2, 9, 6))
    kept = Latents(latent, key)
    one = jax.tree.map(lambda a: a[:1, :1], kept)
    table = np.asarray([[3, 0, 5], [1, 4, 2]], np.int32)

    @jax.jit
    def appended(pages, kept):
        cache = paged.Paged(pages, table, form)
        for start, stop in [(0, 5), (5, 6), (6, 9)]:
            positions = jnp.tile(jnp.arange(start, stop, dtype=jnp.int32)[None], (2, 1))
            new = jax.tree.map(lambda a, i=start, j=stop: a[:, i:j], kept)
            cache = cache.append(new, positions)
        return cache.pages

    return kept, paged.Paged(appended(paged.pool(one, 6, SIZE, form), kept), table, form)


def read(cache):
    """Everything of a cache's rows, in float32."""
    return jax.tree.map(np.asarray, jax.jit(lambda pages: dataclasses.replace(
        cache, pages=pages).read(jnp.float32))(cache.pages))


def test_what_was_appended_is_read():
    kept, cache = written(paged.AS_MADE)
    for found, wanted in zip(jax.tree.leaves(read(cache)), jax.tree.leaves(kept)):
        np.testing.assert_array_equal(found[:, :9], wanted)
    block = jax.jit(lambda pages: dataclasses.replace(cache, pages=pages).block(
        jnp.int32(1), 2, jnp.float32))(cache.pages)  # what lies beyond a table is its end
    np.testing.assert_array_equal(np.asarray(block.latent)[:, 4:5], kept.latent[:, 8:9])


def test_positions_beyond_a_table_spoil_no_page():
    kept, cache = written(paged.AS_MADE)
    one = jax.tree.map(lambda a: np.full_like(a[:, :1], 7.0), kept)
    after = jax.jit(lambda pages, one: dataclasses.replace(cache, pages=pages).append(
        one, jnp.asarray([[12], [400]], jnp.int32)).pages)(cache.pages, one)
    for a, b in zip(jax.tree.leaves(cache.pages), jax.tree.leaves(after)):
        np.testing.assert_array_equal(np.asarray(a)[:-1], np.asarray(b)[:-1])


def test_pages_of_8_bits_take_656_bytes_a_token_at_v3s_shapes_and_round_within_their_grid():
    v3 = MLAConfig(heads=128, q_rank=1536, kv_rank=512, nope_dim=128, rope_dim=64, value_dim=128)
    one = Latents(*(jax.ShapeDtypeStruct((1, 1, n), jnp.bfloat16)
                    for n in (v3.kv_rank, v3.rope_dim)))
    assert paged.bytes_per_token(paged.pool(one, 2, SIZE, mla.FP8_PAGES)) == 656
    assert paged.bytes_per_token(paged.pool(one, 2, SIZE)) == 1152
    kept, cache = written(mla.FP8_PAGES)
    found = read(cache)
    # E4M3 keeps 3 bits of fraction, bfloat16 seven; numbers below 2^-6 of a tile's largest less.
    error = np.abs(found.latent[:, :9] - kept.latent)
    largest = np.abs(np.asarray(kept.latent)).max()
    assert (error <= np.maximum(np.abs(kept.latent) * 2.0**-4, largest * 2.0**-9)).all()
    np.testing.assert_allclose(found.k_rope[:, :9], kept.k_rope, rtol=2.0**-8)


def test_attention_over_pages_is_that_over_rows():
    kept, cache = written(paged.AS_MADE)
    q, r = arrays(5, (2, 3, 4, 130), (2, 3, 4, 6))
    positions = jnp.asarray([[6, 7, 8], [0, 1, 2]], jnp.int32)
    width = paged.table_width(12, SIZE)
    wide = jnp.pad(cache.table, ((0, 0), (0, width - 3)), constant_values=6)
    found = paged.attend((q, r), dataclasses.replace(cache, table=wide), positions, 0.2)
    wanted = attend_cached((q, r), kept.keys, kept.values, positions, 0.2)
    agreement.close(found, wanted, 1e-6)
