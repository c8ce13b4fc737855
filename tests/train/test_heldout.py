"""Held-out numbers are those of the model: nothing that only training does changes them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from dsjax.layers.backend import single
from dsjax.model import transformer
from dsjax.model.loss import Batch
from dsjax.train import heldout
from tests.train.small_run import MODEL


def test_no_token_is_dropped_for_lack_of_capacity():
    """V2 drops in training only (V2 report sec. 2.2.4); that the factor bites is shown too."""
    free = dataclasses.replace(MODEL, mtp_depth=0, layers=1, dense_layers=0)
    assert free.moe is not None
    tight = dataclasses.replace(free, moe=dataclasses.replace(free.moe, capacity_factor=0.25))
    params = transformer.init(free, jax.random.key(0))
    tokens = jax.random.randint(jax.random.key(1), (2, 14), 0, free.vocab)
    batch = Batch(tokens, jnp.ones_like(tokens), jnp.ones(tokens.shape, jnp.float32))
    sums = [jax.jit(heldout.make_heldout_step(cfg, single()))(params, batch)
            for cfg in (free, tight)]
    jax.tree.map(np.testing.assert_array_equal, *sums)

    def x(cfg):
        return jax.jit(lambda p: transformer.hidden(p, tokens, batch.segments, cfg, single()).x)

    assert np.abs(x(tight)(params) - x(free)(params)).max() > 1e-3
