"""Weights that decode in bfloat16 are there once, and say what they said beside their masters.

What it defends against: a second copy in float32, that nothing multiplies.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsjax.config.run import PrecisionConfig
from dsjax.infer.generate import quantized, ready
from dsjax.model import transformer
from dsjax.numerics import precision as numerics
from dsjax.params import is_spec
from dsjax.runtime import backend as backends
from tests.agreement import TINY, draw


@pytest.mark.parametrize("activations", ["bfloat16", "float32"])
def test_weights_are_there_once_and_logits_are_the_same_bits(activations):
    backend = backends.for_decoding(TINY, PrecisionConfig("bf16", activations))
    specs = transformer.specs(TINY)
    masters = draw(specs, 3, jnp.float32)
    held, cfg = ready(masters, TINY, backend)
    both = numerics.attach(masters, quantized(masters, specs, backend), specs)
    own = {id(leaf) for leaf in jax.tree.leaves(masters)}
    made = 0
    for spec, leaf in zip(jax.tree.leaves(specs, is_leaf=is_spec),
                          jax.tree.leaves(held, is_leaf=lambda a: isinstance(a, numerics.Weight)),
                          strict=True):
        is_absorbed = spec.role == "attention" and activations == "float32"
        if not spec.is_product:
            assert id(leaf) in own
        elif is_absorbed:
            assert id(leaf.master) in own
        else:
            assert leaf.dtype == jnp.bfloat16
            assert leaf.shape == spec.shape
            made += leaf.nbytes
    assert made == sum(2 * int(np.prod(s.shape)) for s in jax.tree.leaves(specs, is_leaf=is_spec)
                       if s.is_product and (s.role != "attention" or activations == "bfloat16"))
    again, _ = ready(held, TINY, backend)
    assert [id(a) for a in jax.tree.leaves(again)] == [id(a) for a in jax.tree.leaves(held)]

    tokens = jnp.asarray([[1, 5, 2, 9, 4]], jnp.int32)
    cache = transformer.empty_cache(cfg, 1, 8, backend)
    positions = jnp.arange(5, dtype=jnp.int32)[None]

    @jax.jit
    def run(p):
        x = transformer.hidden(p, tokens, jnp.ones_like(tokens), cfg, backend).x
        return x, transformer.hidden_cached(p, tokens, positions, cache, cfg, backend)

    for got, wanted in zip(jax.tree.leaves(run(held)), jax.tree.leaves(run(both)), strict=True):
        np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("matmul", ["fp32", "bf16", "fp8"])
def test_weights_that_are_ready_stay_as_they_are(matmul):
    """`dsjax generate` makes them ready to let its masters go, and `generate` asks again."""
    backend = backends.for_decoding(TINY, PrecisionConfig(matmul))
    once, cfg = ready(draw(transformer.specs(TINY), 3, jnp.float32), TINY, backend)
    twice, _ = ready(once, cfg, backend)
    assert jax.tree.structure(twice) == jax.tree.structure(once)
    assert all(a is b for a, b in zip(jax.tree.leaves(twice), jax.tree.leaves(once), strict=True))


def test_consumed_masters_are_let_go_and_nothing_else_is():
    backend = backends.for_decoding(TINY, PrecisionConfig("bf16", "bfloat16"))
    specs = transformer.specs(TINY)
    masters = draw(specs, 3, jnp.float32)
    held, _ = ready(masters, TINY, backend, is_consumed=True)
    for spec, leaf in zip(jax.tree.leaves(specs, is_leaf=is_spec), jax.tree.leaves(masters),
                          strict=True):
        assert leaf.is_deleted() == spec.is_product
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(held))
    again, _ = ready(held, TINY, backend, is_consumed=True)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(again))
