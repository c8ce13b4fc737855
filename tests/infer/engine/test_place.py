"""Trees on one device, layer by layer."""

import jax
import numpy as np

from dsjax.infer.engine.place import Place
from dsjax.model import transformer
from tests import agreement


def test_consumed_layers_are_there_once():
    p, kept = (agreement.draw(transformer.specs(agreement.TINY), 3) for _ in range(2))
    wanted = transformer.written_out(kept)
    found = Place().written_out(p, is_consumed=True)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_array_equal(a, b)
    assert all(a.is_deleted() for a in jax.tree.leaves(p.stacks["moe"]))
    assert not any(a.is_deleted() for a in jax.tree.leaves(kept))
