"""Where the past lies and who reads it is handed in: pages, another dtype, another attention."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

from dsjax.infer import Options, Sampling, cache_bytes_per_token, default_backend, generate
from dsjax.layers.cache import contiguous
from dsjax.model import transformer
from tests import agreement

LATENT = dataclasses.replace(agreement.TINY, layers=2, mtp_depth=1)
GROUPED = dataclasses.replace(LATENT, dense_layers=2, moe=None, attention=agreement.GQA)
MODELS = pytest.mark.parametrize("cfg", [LATENT, GROUPED], ids=["latent", "grouped"])
EITHER = pytest.mark.parametrize(
    "cfg", [LATENT, pytest.param(GROUPED, marks=pytest.mark.exhaustive)], ids=["latent", "grouped"])
PROMPTS = [[1, 2, 3], [4], [5, 6, 7, 8, 9, 10, 0, 1, 2, 3, 4]]
SAMPLING = Sampling(temperature=1.2, top_p=0.9, max_new_tokens=12)
PAGE = 4


@struct.dataclass
class Paged:
    """Positions of a row in pages that lie anywhere among those of all rows."""

    pages: object  # leaves [P, PAGE, ...]
    table: jax.Array  # [B, S / PAGE], the page of each span of a row

    def append(self, new, positions):
        row = jnp.arange(positions.shape[0])[:, None]
        nowhere = self.table.size
        page = self.table.at[row, positions // PAGE].get(mode="fill", fill_value=nowhere)
        return dataclasses.replace(self, pages=jax.tree.map(
            lambda old, part: old.at[page, positions % PAGE].set(part), self.pages, new))

    def read(self, dtype):
        rows = self.table.shape[0]
        return jax.tree.map(lambda a: a[self.table].reshape(rows, -1, *a.shape[2:]).astype(dtype),
                            self.pages)


def paged(kept, length):
    rows, known = jax.tree.leaves(kept)[0].shape[:2]
    spans = -(-length // PAGE)
    order = np.random.default_rng(0).permutation(rows * spans)
    pages = jax.tree.map(lambda a: jnp.zeros((rows * spans, PAGE, *a.shape[2:]), a.dtype), kept)
    cache = Paged(pages, jnp.asarray(order.reshape(rows, spans), jnp.int32))
    return cache.append(kept, jnp.tile(jnp.arange(known)[None], (rows, 1)))


def attend_pages(queries, cache, positions, scale):
    """Page after page with a running maximum: no row's past is ever in one piece."""
    batch, new, heads = queries[0].shape[:3]
    top = jnp.full((batch, new, heads), -jnp.inf)
    total, out = jnp.zeros_like(top), 0.0
    for span in range(cache.table.shape[1]):
        page = jax.tree.map(lambda a, at=cache.table[:, span]: a[at], cache.pages)
        keys = [jnp.repeat(k, heads // k.shape[2], axis=2) for k in page.keys]
        values = jnp.repeat(page.values, heads // page.values.shape[2], axis=2)
        scores = sum(jnp.einsum("bthn,bshn->bths", q, k) for q, k in zip(queries, keys)) * scale
        at = (span * PAGE + jnp.arange(PAGE))[None, None, None]
        scores = jnp.where(at <= positions[..., None, None], scores, -jnp.inf)
        higher = jnp.maximum(top, scores.max(-1))
        mass, shrink = jnp.exp(scores - higher[..., None]), jnp.exp(top - higher)
        total = total * shrink + mass.sum(-1)
        out = out * shrink[..., None] + jnp.einsum("bths,bshu->bthu", mass, values)
        top = higher
    return out / total[..., None]


@EITHER
@pytest.mark.parametrize("is_drafting", [
    pytest.param(False, marks=pytest.mark.exhaustive), True])
def test_pages_anywhere_hold_the_same_texts_bit_for_bit(cfg, is_drafting):
    p = agreement.draw(transformer.specs(cfg), 2)
    backend = dataclasses.replace(default_backend(), make_cache=paged)
    wanted, found = (
        generate(p, cfg, PROMPTS, SAMPLING, Options(one, draft=is_drafting)).completions
        for one in (default_backend(), backend))
    assert found == wanted


@EITHER
def test_an_attention_of_its_own_reads_the_cache_where_it_lies(cfg):
    p = agreement.draw(transformer.specs(cfg), 2)
    foreign = dataclasses.replace(default_backend(), make_cache=paged, attend_cached=attend_pages)
    tokens = jnp.asarray(np.random.default_rng(1).integers(0, cfg.vocab, (2, 9)), jnp.int32)

    def run(backend):
        cache = transformer.empty_cache(cfg, 2, 9, backend)
        steps = []
        for start, end in [(0, 4), (4, 8), (8, 9)]:
            positions = jnp.tile(jnp.arange(start, end)[None], (2, 1))
            x, cache = step(p, tokens[:, start:end], positions, cache, cfg, backend)
            steps.append(x)
        return jnp.concatenate(steps, 1)

    # Softmax in pieces and in one differ by roundings of 2^-24; two layers amplify little.
    agreement.close(run(foreign), run(default_backend()), 1e-5)


step = jax.jit(transformer.hidden_cached, static_argnums=(4, 5))


@MODELS
def test_a_cache_of_bfloat16_takes_half_the_bytes_and_rounds_what_it_keeps(cfg):
    def narrow(kept, length):
        return contiguous(jax.tree.map(lambda a: a.astype(jnp.bfloat16), kept), length)

    p = agreement.draw(transformer.specs(cfg), 2)
    backend = dataclasses.replace(default_backend(), make_cache=narrow)
    assert 2 * cache_bytes_per_token(cfg, backend) == cache_bytes_per_token(cfg, default_backend())
    tokens = jnp.asarray(np.random.default_rng(1).integers(0, cfg.vocab, (2, 9)), jnp.int32)
    positions = jnp.tile(jnp.arange(9)[None], (2, 1))

    def run(backend):
        cache = transformer.empty_cache(cfg, 2, 9, backend)
        return step(p, tokens, positions, cache, cfg, backend)

    (x, kept), (wanted, _) = run(backend), run(default_backend())
    assert {a.dtype for a in jax.tree.leaves(kept)} == {jnp.dtype(jnp.bfloat16)}
    error = np.abs(np.asarray(x) - np.asarray(wanted))
    # A key and a value rounded by 2^-9 in each of two layers; the median is free of tokens whose
    # experts a rounding may exchange.
    assert 0 < np.median(error) < 2 * 4 * 2.0**-9
